// SPDX-License-Identifier: Apache-2.0
//
// A Hugging Face model directory: which tokenizer files there are, and what the configuration
// files beside them add.

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/numbers.h"
#include "engine/base/cat.h"
#include "engine/base/json.h"
#include "engine/base/read_file.h"
#include "engine/base/status.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/tokenizer_parts.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

// Nothing where there is no such file.
absl::StatusOr<std::optional<std::string>> ReadIfThere(const std::filesystem::path& path) {
  absl::StatusOr<std::string> content = ReadSmallFile(path.string(), kMaxJsonBytes);
  if (absl::IsNotFound(content.status())) return std::optional<std::string>();
  if (!content.ok()) return content.status();
  return std::optional<std::string>(*std::move(content));
}

// An empty object where there is no such file.
absl::StatusOr<Json> ReadJsonIfThere(const std::filesystem::path& directory, const char* name) {
  absl::StatusOr<std::optional<std::string>> text = ReadIfThere(directory / name);
  if (!text.ok()) return text.status();
  if (!text->has_value()) return Json::object();
  return ParseJsonObject(**text, name);
}

// Which pattern a bare vocab.json + merges.txt is cut by; the configuration names the family.
absl::StatusOr<WordSplit> SplitOfFamily(const Json& tokenizer_config, const Json& config) {
  absl::StatusOr<std::string> tokenizer_class =
      StringMember(tokenizer_config, "tokenizer_class", "");
  absl::StatusOr<std::string> model_type = StringMember(config, "model_type", "");
  if (!tokenizer_class.ok()) return Within("tokenizer_config.json", tokenizer_class.status());
  if (!model_type.ok()) return Within("config.json", model_type.status());
  if (*tokenizer_class == "Qwen2Tokenizer" || *tokenizer_class == "Qwen2TokenizerFast" ||
      *model_type == "qwen2" || *model_type == "qwen3") {
    return WordSplit::kQwen2;
  }
  if (*tokenizer_class == "GPT2Tokenizer" || *tokenizer_class == "GPT2TokenizerFast" ||
      *model_type == "gpt2") {
    return WordSplit::kGpt2;
  }
  return absl::InvalidArgumentError(
      "vocab.json and merges.txt without tokenizer.json are read for tokenizer_class "
      "Qwen2Tokenizer or GPT2Tokenizer (tokenizer_config.json) or model_type qwen2, qwen3 or gpt2 "
      "(config.json) only");
}

// A token in a configuration file: a string, or an object with a string 'content'.
std::optional<std::string> TokenContent(const Json* value) {
  if (value == nullptr) return std::nullopt;
  if (value->is_object()) value = FindMember(*value, "content");
  if (value == nullptr || !value->is_string()) return std::nullopt;
  return value->get<std::string>();
}

void UpsertAdded(AddedToken token, TokenizerParts* parts) {
  for (AddedToken& known : parts->added_list) {
    if (known.id == token.id) {
      known = std::move(token);
      return;
    }
  }
  parts->added_list.push_back(std::move(token));
}

// added_tokens_decoder of tokenizer_config.json, and added_tokens.json, for the formats that lack
// a list of their own.
absl::Status AddConfiguredTokens(const Json& tokenizer_config, const Json& added_tokens,
                                 TokenizerParts* parts) {
  std::vector<AddedToken> tokens;
  for (const auto& [content, id] : added_tokens.items()) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > kMaxTokenId) {
      return absl::InvalidArgumentError(Cat("added_tokens.json: '", content.substr(0, 64),
                                            "' has an id outside 0..", kMaxTokenId));
    }
    AddedToken token;
    token.id = id.get<int32_t>();
    token.content = content;
    tokens.push_back(std::move(token));
  }
  if (const Json* decoder = FindMember(tokenizer_config, "added_tokens_decoder")) {
    for (const auto& [key, entry] : decoder->items()) {
      AddedToken token;
      const std::optional<std::string> content = TokenContent(&entry);
      if (!absl::SimpleAtoi(key, &token.id) || !content.has_value()) {
        return absl::InvalidArgumentError(Cat("tokenizer_config.json: added_tokens_decoder '",
                                              key.substr(0, 64),
                                              "' is no id with an object that has 'content'"));
      }
      token.content = *content;
      const std::pair<const char*, bool*> flags[] = {{"special", &token.special},
                                                     {"lstrip", &token.lstrip},
                                                     {"rstrip", &token.rstrip},
                                                     {"single_word", &token.single_word}};
      for (const auto& [field, target] : flags) {
        absl::StatusOr<bool> value = BoolMember(entry, field, false);
        if (!value.ok()) return Within("tokenizer_config.json", value.status());
        *target = *value;
      }
      tokens.push_back(std::move(token));
    }
  }
  for (AddedToken& token : tokens) {
    if (token.content.empty()) continue;
    if (absl::Status s = AddToken(token.id, token.content, parts); !s.ok()) {
      return Within("added tokens", s);
    }
    UpsertAdded(std::move(token), parts);
  }
  return absl::OkStatus();
}

// eos_token_id of generation_config.json or config.json: a number or a list of numbers.
absl::Status AddEosIds(const Json& config, const char* file, TokenizerParts* parts) {
  const Json* value = FindMember(config, "eos_token_id");
  if (value == nullptr) return absl::OkStatus();
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > kMaxTokenId) {
      return absl::InvalidArgumentError(
          Cat(file, ": eos_token_id must be ids in 0..", kMaxTokenId));
    }
    parts->eos_ids.push_back(id.get<int32_t>());
  }
  return absl::OkStatus();
}

absl::Status ApplySpecialTokens(const Json& tokenizer_config, const Json& special_tokens_map,
                                TokenizerParts* parts) {
  const auto content_of = [&](const char* name) {
    std::optional<std::string> content = TokenContent(FindMember(tokenizer_config, name));
    return content.has_value() ? content : TokenContent(FindMember(special_tokens_map, name));
  };
  const auto id_of = [&](const std::string& text) -> std::optional<int32_t> {
    const auto it = parts->ids.find(text);
    if (it == parts->ids.end()) return std::nullopt;
    return it->second;
  };
  if (const std::optional<std::string> bos = content_of("bos_token")) {
    parts->bos_token = *bos;
    if (const std::optional<int32_t> id = id_of(*bos)) {
      parts->bos_id = id;
      if (parts->prefix.empty()) parts->prefix = {*id};
    }
  }
  if (const std::optional<std::string> eos = content_of("eos_token")) {
    parts->eos_token = *eos;
    if (const std::optional<int32_t> id = id_of(*eos)) parts->eos_ids.push_back(*id);
  }
  absl::StatusOr<bool> add_bos = BoolMember(tokenizer_config, "add_bos_token", parts->add_bos);
  if (!add_bos.ok()) return Within("tokenizer_config.json", add_bos.status());
  parts->add_bos = *add_bos;
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadChatTemplate(const std::filesystem::path& directory,
                                             const Json& tokenizer_config) {
  absl::StatusOr<std::optional<std::string>> file = ReadIfThere(directory / "chat_template.jinja");
  if (!file.ok()) return file.status();
  if (file->has_value()) return **file;
  absl::StatusOr<Json> json_file = ReadJsonIfThere(directory, "chat_template.json");
  if (!json_file.ok()) return json_file.status();
  const Json* value = FindMember(*json_file, "chat_template");
  if (value == nullptr) value = FindMember(tokenizer_config, "chat_template");
  if (value == nullptr) return std::string();
  if (value->is_string()) return value->get<std::string>();
  // A list of named templates; the one called "default" is the one for plain chat.
  if (value->is_array()) {
    for (const Json& entry : *value) {
      const Json* name = FindMember(entry, "name");
      const Json* source = FindMember(entry, "template");
      if (name != nullptr && *name == "default" && source != nullptr && source->is_string()) {
        return source->get<std::string>();
      }
    }
  }
  return absl::InvalidArgumentError(
      "tokenizer_config.json: chat_template must be a string or a list with a 'default' template");
}

absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromFiles(
    const std::filesystem::path& directory, const Json& tokenizer_config, const Json& config) {
  absl::StatusOr<std::optional<std::string>> json = ReadIfThere(directory / "tokenizer.json");
  if (!json.ok()) return json.status();
  if (json->has_value()) return PartsFromTokenizerJson(**json);

  absl::StatusOr<std::optional<std::string>> model = ReadIfThere(directory / "tokenizer.model");
  if (!model.ok()) return model.status();
  if (model->has_value()) {
    absl::StatusOr<std::unique_ptr<TokenizerParts>> parts = PartsFromSentencePiece(**model);
    if (!parts.ok()) return parts;
    absl::StatusOr<bool> legacy = BoolMember(tokenizer_config, "legacy", true);
    if (!legacy.ok()) return Within("tokenizer_config.json", legacy.status());
    if (!*legacy) (*parts)->normalizer.PrependOnlyAtStart();
    return parts;
  }

  absl::StatusOr<std::optional<std::string>> vocab = ReadIfThere(directory / "vocab.json");
  absl::StatusOr<std::optional<std::string>> merges = ReadIfThere(directory / "merges.txt");
  if (!vocab.ok()) return vocab.status();
  if (!merges.ok()) return merges.status();
  if (vocab->has_value() && merges->has_value()) {
    absl::StatusOr<WordSplit> split = SplitOfFamily(tokenizer_config, config);
    if (!split.ok()) return split.status();
    return PartsFromVocabAndMerges(**vocab, **merges, *split);
  }
  return absl::NotFoundError(Cat(
      directory.string(), ": no tokenizer.json, tokenizer.model or vocab.json with merges.txt"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::FromDirectory(
    const std::string& directory) {
  const std::filesystem::path path(directory);
  absl::StatusOr<Json> tokenizer_config = ReadJsonIfThere(path, "tokenizer_config.json");
  absl::StatusOr<Json> special_tokens_map = ReadJsonIfThere(path, "special_tokens_map.json");
  absl::StatusOr<Json> added_tokens = ReadJsonIfThere(path, "added_tokens.json");
  absl::StatusOr<Json> generation_config = ReadJsonIfThere(path, "generation_config.json");
  absl::StatusOr<Json> config = ReadJsonIfThere(path, "config.json");
  for (const auto* document :
       {&tokenizer_config, &special_tokens_map, &added_tokens, &generation_config, &config}) {
    if (!document->ok()) return document->status();
  }

  absl::StatusOr<std::unique_ptr<TokenizerParts>> parts =
      PartsFromFiles(path, *tokenizer_config, *config);
  if (!parts.ok()) return parts.status();
  TokenizerParts* p = parts->get();
  const bool lists_its_own = std::filesystem::exists(path / "tokenizer.json");
  if (!lists_its_own) {
    absl::Status s = AddConfiguredTokens(*tokenizer_config, *added_tokens, p);
    if (!s.ok()) return s;
  }
  if (absl::Status s = ApplySpecialTokens(*tokenizer_config, *special_tokens_map, p); !s.ok()) {
    return s;
  }
  const bool generation_says = FindMember(*generation_config, "eos_token_id") != nullptr;
  absl::Status eos = generation_says ? AddEosIds(*generation_config, "generation_config.json", p)
                                     : AddEosIds(*config, "config.json", p);
  if (!eos.ok()) return eos;
  std::sort(p->eos_ids.begin(), p->eos_ids.end());
  p->eos_ids.erase(std::unique(p->eos_ids.begin(), p->eos_ids.end()), p->eos_ids.end());

  absl::StatusOr<std::string> chat_template = ReadChatTemplate(path, *tokenizer_config);
  if (!chat_template.ok()) return chat_template.status();
  p->chat_template_source = *std::move(chat_template);
  return FromParts(std::move(parts));
}

}  // namespace nibble
