// SPDX-License-Identifier: Apache-2.0
#include "engine/eval/documents.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/strings/match.h"
#include "engine/base/cat.h"
#include "engine/base/json.h"
#include "engine/base/read_file.h"
#include "engine/tokenizer/chat_template.h"

namespace nibble {
namespace {

using nlohmann::json;

absl::Status BadLine(const std::string& path, size_t line, absl::string_view what) {
  return absl::InvalidArgumentError(Cat(path, ", line ", line, ": ", what));
}

void AddMissingBos(const Tokenizer& tokenizer, Document* document) {
  const std::optional<int32_t> bos = tokenizer.bos_id();
  if (!tokenizer.add_bos() || !bos.has_value()) return;
  if (document->empty() || document->front() != *bos) document->insert(document->begin(), *bos);
}

absl::StatusOr<Document> FromIds(const json& ids, const Tokenizer& tokenizer) {
  Document document;
  document.reserve(ids.size());
  for (const json& id : ids) {
    if (!id.is_number_integer())
      return absl::InvalidArgumentError("\"ids\" holds something that is not an integer");
    const int64_t value = id.get<int64_t>();
    if (value < 0 || value >= tokenizer.vocab_size()) {
      return absl::InvalidArgumentError(
          Cat("\"ids\" holds ", value, "; allowed are 0..", tokenizer.vocab_size() - 1));
    }
    document.push_back(static_cast<int32_t>(value));
  }
  AddMissingBos(tokenizer, &document);
  return document;
}

// What strftime_now() shows while calibration chats are rendered: a fixed day, so that the same
// file gives the same tokens on any day. It is the date that Llama 3.1's template falls back to.
constexpr int64_t kChatTime = 1721952000;  // 2024-07-26

absl::StatusOr<Document> FromMessages(const nlohmann::json& messages, const Tokenizer& tokenizer) {
  if (!messages.is_array()) return absl::InvalidArgumentError("\"messages\" is not an array");
  if (tokenizer.chat_template() == nullptr) return tokenizer.chat_template_status();
  ChatInput input;
  input.messages = nlohmann::ordered_json(messages);
  input.add_generation_prompt = false;
  input.bos_token = tokenizer.bos_token();
  input.eos_token = tokenizer.eos_token();
  input.now = kChatTime;
  auto text = tokenizer.chat_template()->Render(input);
  if (!text.ok()) return text.status();
  Document document = tokenizer.Encode(*text, {.add_bos = false, .parse_special = true});
  AddMissingBos(tokenizer, &document);
  return document;
}

absl::StatusOr<Document> FromObject(const json& object, const Tokenizer& tokenizer) {
  if (auto text = object.find("text"); text != object.end()) {
    if (!text->is_string()) return absl::InvalidArgumentError("\"text\" is not a string");
    return tokenizer.Encode(text->get_ref<const std::string&>());
  }
  if (auto messages = object.find("messages"); messages != object.end()) {
    return FromMessages(*messages, tokenizer);
  }
  if (auto ids = object.find("ids"); ids != object.end()) {
    if (!ids->is_array()) return absl::InvalidArgumentError("\"ids\" is not an array");
    return FromIds(*ids, tokenizer);
  }
  return absl::InvalidArgumentError(
      "there is none of the fields \"text\", \"messages\" and \"ids\"");
}

absl::StatusOr<std::vector<Document>> FromLines(const std::string& path, std::string_view bytes,
                                                const Tokenizer& tokenizer) {
  std::vector<Document> documents;
  size_t line_number = 0;
  while (!bytes.empty()) {
    const size_t end = std::min(bytes.find('\n'), bytes.size());
    const std::string_view line = bytes.substr(0, end);
    bytes.remove_prefix(std::min(end + 1, bytes.size()));
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    auto object = ParseJsonObject(line, Cat(path, ", line ", line_number));
    if (!object.ok()) return object.status();
    auto document = FromObject(*object, tokenizer);
    if (!document.ok()) return BadLine(path, line_number, document.status().message());
    documents.push_back(*std::move(document));
  }
  return documents;
}

absl::StatusOr<std::vector<Document>> FromArray(const std::string& path, std::string_view bytes,
                                                const Tokenizer& tokenizer) {
  const json array = json::parse(bytes, nullptr, /*allow_exceptions=*/false);
  if (array.is_discarded()) return absl::InvalidArgumentError(Cat(path, ": not valid JSON"));
  if (!array.is_array()) {
    return absl::InvalidArgumentError(Cat(path, ": a .json file holds an array of strings"));
  }
  std::vector<Document> documents;
  for (size_t i = 0; i < array.size(); ++i) {
    if (!array[i].is_string()) {
      return absl::InvalidArgumentError(Cat(path, ": element ", i, " is not a string"));
    }
    documents.push_back(tokenizer.Encode(array[i].get_ref<const std::string&>()));
  }
  return documents;
}

}  // namespace

absl::StatusOr<std::vector<Document>> ReadDocuments(const std::string& path,
                                                    const Tokenizer& tokenizer, int64_t max_bytes) {
  auto bytes = ReadSmallFile(path, max_bytes);
  if (!bytes.ok()) return bytes.status();
  absl::StatusOr<std::vector<Document>> documents;
  if (absl::EndsWith(path, ".jsonl")) {
    documents = FromLines(path, *bytes, tokenizer);
  } else if (absl::EndsWith(path, ".json")) {
    documents = FromArray(path, *bytes, tokenizer);
  } else {
    documents = std::vector<Document>{tokenizer.Encode(*bytes)};
  }
  if (documents.ok() && documents->empty()) {
    return absl::InvalidArgumentError(Cat(path, " holds no document"));
  }
  return documents;
}

absl::StatusOr<Calibration> CalibrationSamples(const std::vector<Document>& documents,
                                               const Tokenizer& tokenizer, int32_t samples,
                                               int32_t length) {
  const bool bos = tokenizer.add_bos() && tokenizer.bos_id().has_value();
  Calibration result;
  Document sample;
  auto begin_sample = [&] {
    sample.clear();
    if (bos) sample.push_back(*tokenizer.bos_id());
  };
  begin_sample();
  for (size_t d = 0; d < documents.size(); ++d) {
    const Document& document = documents[d];
    for (size_t i = bos && !document.empty() && document[0] == *tokenizer.bos_id() ? 1 : 0;
         i < document.size(); ++i) {
      sample.push_back(document[i]);
      if (static_cast<int32_t>(sample.size()) < length) continue;
      result.samples.push_back(sample);
      begin_sample();
      if (static_cast<int32_t>(result.samples.size()) < samples) continue;
      sample.insert(sample.end(), document.begin() + static_cast<ptrdiff_t>(i) + 1, document.end());
      if (i + 1 < document.size()) result.rest.push_back(sample);
      result.rest.insert(result.rest.end(), documents.begin() + static_cast<ptrdiff_t>(d) + 1,
                         documents.end());
      return result;
    }
  }
  if (result.samples.empty()) {
    return absl::InvalidArgumentError(
        Cat("the calibration text has ", sample.size(), " tokens; one sample needs ", length));
  }
  return result;
}

}  // namespace nibble
