// SPDX-License-Identifier: Apache-2.0
//
// Reader of tokenizer.json, the format of the `tokenizers` package (huggingface/tokenizers).

#include <nlohmann/json.hpp>
#include <utility>

#include "engine/base/cat.h"
#include "engine/base/json.h"
#include "engine/base/status.h"
#include "engine/tokenizer/tokenizer_parts.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 8;
constexpr char kMark[] = "\xE2\x96\x81";

absl::Status FieldError(std::string_view field, std::string_view problem) {
  return absl::InvalidArgumentError(Cat("tokenizer.json: field '", field, "' ", problem));
}

absl::Status InTokenizerJson(const absl::Status& status) {
  return Within("tokenizer.json", status);
}

absl::StatusOr<int32_t> TokenId(const Json& value, std::string_view field) {
  if (!value.is_number_integer() || value.get<int64_t>() < 0 ||
      value.get<int64_t>() > kMaxTokenId ||
      (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{kMaxTokenId})) {
    return FieldError(field, Cat("has an id outside 0..", kMaxTokenId));
  }
  return value.get<int32_t>();
}

absl::Status ReadVocab(const Json& model, TokenizerParts* parts) {
  const Json* vocab = FindMember(model, "vocab");
  if (vocab == nullptr || !vocab->is_object() || vocab->empty()) {
    return FieldError("model.vocab", "must be a non-empty object of token to id");
  }
  parts->ids.reserve(vocab->size());
  for (const auto& [text, value] : vocab->items()) {
    if (text.empty()) continue;  // can never be produced
    absl::StatusOr<int32_t> id = TokenId(value, "model.vocab");
    if (!id.ok()) return id.status();
    if (absl::Status s = AddToken(*id, text, parts); !s.ok()) return InTokenizerJson(s);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ReadMerges(const Json& model) {
  std::vector<std::pair<std::string, std::string>> merges;
  const Json* list = FindMember(model, "merges");
  if (list == nullptr || !list->is_array()) return FieldError("model.merges", "must be an array");
  merges.reserve(list->size());
  for (const Json& entry : *list) {
    if (entry.is_string()) {
      auto pair = SplitMergeLine(entry.get_ref<const std::string&>());
      if (!pair.ok()) return InTokenizerJson(pair.status());
      merges.push_back(*std::move(pair));
    } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
               entry[1].is_string()) {
      merges.emplace_back(entry[0].get<std::string>(), entry[1].get<std::string>());
    } else {
      return FieldError("model.merges",
                        Cat("entry ", merges.size(), " is neither a string nor a pair"));
    }
  }
  return merges;
}

absl::Status ReadModel(const Json& model, TokenizerParts* parts) {
  absl::StatusOr<std::string> type = StringMember(model, "type", "BPE");
  if (!type.ok()) return InTokenizerJson(type.status());
  if (*type != "BPE") {
    return FieldError("model.type", Cat("is '", *type, "'; supported is BPE"));
  }
  for (const char* field : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    absl::StatusOr<std::string> affix = StringMember(model, field, "");
    if (!affix.ok()) return InTokenizerJson(affix.status());
    if (!affix->empty()) {
      return FieldError(Cat("model.", field),
                        Cat("is '", affix->substr(0, 64), "', which is not supported"));
    }
  }
  if (const Json* dropout = FindMember(model, "dropout")) {
    if (!dropout->is_number() || dropout->get<double>() != 0) {
      return FieldError("model.dropout", "must be null or 0");
    }
  }

  MergeListOptions options;
  options.byte_level = parts->pre_tokenizer.byte_level();
  const std::pair<const char*, bool*> flags[] = {{"ignore_merges", &options.ignore_merges},
                                                 {"byte_fallback", &options.byte_fallback},
                                                 {"fuse_unk", &options.fuse_unk}};
  for (const auto& [field, target] : flags) {
    absl::StatusOr<bool> value = BoolMember(model, field, false);
    if (!value.ok()) return InTokenizerJson(value.status());
    *target = *value;
  }
  if (FindMember(model, "unk_token") != nullptr) {
    absl::StatusOr<std::string> unk = StringMember(model, "unk_token", "");
    if (!unk.ok()) return InTokenizerJson(unk.status());
    options.unk_token = *std::move(unk);
  }

  if (absl::Status s = ReadVocab(model, parts); !s.ok()) return s;
  auto merges = ReadMerges(model);
  if (!merges.ok()) return merges.status();
  absl::StatusOr<BpeModel> bpe = BuildMergeListModel(parts->ids, *merges, options);
  if (!bpe.ok()) return InTokenizerJson(bpe.status());
  parts->model = *std::move(bpe);
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const Json& document, TokenizerParts* parts) {
  const Json* list = FindMember(document, "added_tokens");
  if (list == nullptr) return absl::OkStatus();
  if (!list->is_array()) return FieldError("added_tokens", "must be an array");
  for (const Json& entry : *list) {
    AddedToken token;
    const Json* content = FindMember(entry, "content");
    const Json* id = FindMember(entry, "id");
    if (content == nullptr || !content->is_string() || id == nullptr) {
      return FieldError("added_tokens", "has an entry without 'content' or 'id'");
    }
    token.content = content->get<std::string>();
    if (token.content.empty()) continue;
    absl::StatusOr<int32_t> parsed = TokenId(*id, "added_tokens.id");
    if (!parsed.ok()) return parsed.status();
    // A token that the vocabulary has already keeps its id from there.
    const auto known = parts->ids.find(token.content);
    token.id = known != parts->ids.end() ? known->second : *parsed;
    if (absl::Status s = AddToken(token.id, token.content, parts); !s.ok()) {
      return InTokenizerJson(s);
    }
    const std::pair<const char*, bool*> flags[] = {{"special", &token.special},
                                                   {"lstrip", &token.lstrip},
                                                   {"rstrip", &token.rstrip},
                                                   {"single_word", &token.single_word},
                                                   {"normalized", &token.normalized}};
    for (const auto& [field, target] : flags) {
      absl::StatusOr<bool> value = BoolMember(entry, field, false);
      if (!value.ok()) return InTokenizerJson(value.status());
      *target = *value;
    }
    parts->added_list.push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::Status ReadTemplateProcessing(const Json& processor, TokenizerParts* parts) {
  const Json* single = FindMember(processor, "single");
  if (single == nullptr || !single->is_array()) {
    return FieldError("post_processor.single", "must be an array");
  }
  const Json* specials = FindMember(processor, "special_tokens");
  bool after_sequence = false;
  for (const Json& piece : *single) {
    if (FindMember(piece, "Sequence") != nullptr) {
      if (after_sequence) return FieldError("post_processor.single", "has two sequences");
      after_sequence = true;
      continue;
    }
    const Json* special = FindMember(piece, "SpecialToken");
    const Json* name = special == nullptr ? nullptr : FindMember(*special, "id");
    if (name == nullptr || !name->is_string()) {
      return FieldError("post_processor.single",
                        "has an entry that is no Sequence or SpecialToken");
    }
    const auto& key = name->get_ref<const std::string&>();
    const Json* entry = specials == nullptr ? nullptr : FindMember(*specials, key.c_str());
    const Json* ids = entry == nullptr ? nullptr : FindMember(*entry, "ids");
    if (ids == nullptr || !ids->is_array()) {
      return FieldError("post_processor.special_tokens",
                        Cat("has no ids for '", key.substr(0, 64), "'"));
    }
    for (const Json& value : *ids) {
      absl::StatusOr<int32_t> id = TokenId(value, "post_processor.special_tokens.ids");
      if (!id.ok()) return id.status();
      if (static_cast<size_t>(*id) >= parts->texts.size()) {
        return FieldError(
            "post_processor.special_tokens.ids",
            Cat("has id ", *id, ", the vocabulary ends at ", parts->texts.size() - 1));
      }
      (after_sequence ? parts->suffix : parts->prefix).push_back(*id);
    }
  }
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(const Json& processor, int depth, TokenizerParts* parts) {
  absl::StatusOr<std::string> type = StringMember(processor, "type", "");
  if (!type.ok()) return InTokenizerJson(type.status());
  if (*type == "ByteLevel") return absl::OkStatus();  // concerns offsets only
  if (*type == "TemplateProcessing") return ReadTemplateProcessing(processor, parts);
  if (*type == "Sequence") {
    const Json* members = FindMember(processor, "processors");
    if (members == nullptr || !members->is_array() || depth > kMaxDepth) {
      return FieldError("post_processor.processors", "must be an array, not deeply nested");
    }
    for (const Json& member : *members) {
      if (absl::Status s = ReadPostProcessor(member, depth + 1, parts); !s.ok()) return s;
    }
    return absl::OkStatus();
  }
  return FieldError(
      "post_processor.type",
      Cat("is '", type->substr(0, 64), "'; supported are ByteLevel, TemplateProcessing, Sequence"));
}

// What the decoder's steps come to, token by token.
struct DecoderTraits {
  bool byte_level = false;
  bool marks_to_spaces = false;
  bool byte_fallback = false;
  bool strip_leading_space = false;
};

absl::Status ReadDecoder(const Json& decoder, int depth, DecoderTraits* traits) {
  absl::StatusOr<std::string> type = StringMember(decoder, "type", "");
  if (!type.ok()) return InTokenizerJson(type.status());
  if (*type == "ByteLevel") {
    traits->byte_level = true;
  } else if (*type == "ByteFallback") {
    traits->byte_fallback = true;
  } else if (*type == "Metaspace") {
    absl::StatusOr<bool> legacy = BoolMember(decoder, "add_prefix_space", true);
    if (!legacy.ok()) return InTokenizerJson(legacy.status());
    absl::StatusOr<std::string> scheme =
        StringMember(decoder, "prepend_scheme", *legacy ? "always" : "never");
    absl::StatusOr<std::string> replacement = StringMember(decoder, "replacement", kMark);
    if (!scheme.ok()) return InTokenizerJson(scheme.status());
    if (!replacement.ok() || *replacement != kMark) {
      return FieldError("decoder.replacement", "must be U+2581");
    }
    traits->marks_to_spaces = true;
    traits->strip_leading_space = *scheme != "never";
  } else if (*type == "Replace") {
    const Json* pattern = FindMember(decoder, "pattern");
    const Json* literal = pattern == nullptr ? nullptr : FindMember(*pattern, "String");
    const Json* content = FindMember(decoder, "content");
    if (literal == nullptr || *literal != kMark || content == nullptr || *content != " ") {
      return FieldError("decoder", "has a Replace other than U+2581 by a space");
    }
    traits->marks_to_spaces = true;
  } else if (*type == "Strip") {
    const Json* content = FindMember(decoder, "content");
    const Json* start = FindMember(decoder, "start");
    const Json* stop = FindMember(decoder, "stop");
    if (content == nullptr || *content != " " || start == nullptr || stop == nullptr ||
        *stop != 0 || (*start != 0 && *start != 1)) {
      return FieldError("decoder", "has a Strip other than one space at the start");
    }
    traits->strip_leading_space = *start == 1;
  } else if (*type == "Sequence") {
    const Json* members = FindMember(decoder, "decoders");
    if (members == nullptr || !members->is_array() || depth > kMaxDepth) {
      return FieldError("decoder.decoders", "must be an array, not deeply nested");
    }
    for (const Json& member : *members) {
      if (absl::Status s = ReadDecoder(member, depth + 1, traits); !s.ok()) return s;
    }
  } else if (*type != "Fuse") {
    return FieldError("decoder.type",
                      Cat("is '", type->substr(0, 64),
                          "'; supported are ByteLevel, ByteFallback, Metaspace, Replace, "
                          "Strip, Fuse, Sequence"));
  }
  return absl::OkStatus();
}

std::string BytesOf(const std::string& text, const DecoderTraits& traits) {
  if (traits.byte_level) {
    // A token that is not in the byte alphabet (an added one) stands for itself.
    return ByteAlphabetToBytes(text).value_or(text);
  }
  if (traits.byte_fallback) {
    if (const std::optional<uint8_t> byte = ParseByteToken(text)) {
      return std::string(1, static_cast<char>(*byte));
    }
  }
  return traits.marks_to_spaces ? MarksToSpaces(text) : text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromTokenizerJson(std::string_view json) {
  absl::StatusOr<Json> document = ParseJsonObject(json, "tokenizer.json");
  if (!document.ok()) return document.status();
  auto parts = std::make_unique<TokenizerParts>();
  if (const Json* normalizer = FindMember(*document, "normalizer")) {
    absl::StatusOr<Normalizer> read = Normalizer::FromJson(*normalizer);
    if (!read.ok()) return InTokenizerJson(read.status());
    parts->normalizer = *std::move(read);
  }
  if (const Json* pre_tokenizer = FindMember(*document, "pre_tokenizer")) {
    absl::StatusOr<PreTokenizer> read = PreTokenizer::FromJson(*pre_tokenizer);
    if (!read.ok()) return InTokenizerJson(read.status());
    parts->pre_tokenizer = *std::move(read);
  }
  const Json* model = FindMember(*document, "model");
  if (model == nullptr) return FieldError("model", "is missing");
  if (absl::Status s = ReadModel(*model, parts.get()); !s.ok()) return s;
  if (absl::Status s = ReadAddedTokens(*document, parts.get()); !s.ok()) return s;
  if (const Json* processor = FindMember(*document, "post_processor")) {
    if (absl::Status s = ReadPostProcessor(*processor, 0, parts.get()); !s.ok()) return s;
  }
  parts->add_bos = !parts->prefix.empty() || !parts->suffix.empty();
  if (!parts->prefix.empty()) parts->bos_id = parts->prefix.front();

  DecoderTraits traits;
  if (const Json* decoder = FindMember(*document, "decoder")) {
    if (absl::Status s = ReadDecoder(*decoder, 0, &traits); !s.ok()) return s;
  }
  parts->strip_leading_space = traits.strip_leading_space;
  parts->bytes.reserve(parts->texts.size());
  for (const std::string& text : parts->texts) parts->bytes.push_back(BytesOf(text, traits));
  return parts;
}

absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromVocabAndMerges(std::string_view vocab_json,
                                                                        std::string_view merges_txt,
                                                                        WordSplit split) {
  absl::StatusOr<Json> vocab = ParseJsonObject(vocab_json, "vocab.json");
  if (!vocab.ok()) return vocab.status();
  auto parts = std::make_unique<TokenizerParts>();

  const char* expression = split == WordSplit::kGpt2     ? kGpt2Split
                           : split == WordSplit::kLlama3 ? kLlama3Split
                                                         : kQwen2Split;
  absl::StatusOr<PreTokenizer> pre_tokenizer = PreTokenizer::ByteLevelSplit(expression);
  if (!pre_tokenizer.ok()) return pre_tokenizer.status();
  parts->pre_tokenizer = *std::move(pre_tokenizer);
  if (split == WordSplit::kQwen2) {
    absl::StatusOr<Normalizer> nfc = Normalizer::FromJson(Json{{"type", "NFC"}});
    if (!nfc.ok()) return nfc.status();
    parts->normalizer = *std::move(nfc);
  }

  Json model = {{"vocab", *std::move(vocab)}, {"merges", Json::array()}};
  for (size_t begin = 0; begin < merges_txt.size();) {
    size_t end = merges_txt.find('\n', begin);
    if (end == std::string_view::npos) end = merges_txt.size();
    std::string_view line = merges_txt.substr(begin, end - begin);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    const bool version_line = begin == 0 && line.substr(0, 8) == "#version";
    if (!line.empty() && !version_line) model["merges"].push_back(std::string(line));
    begin = end + 1;
  }
  if (absl::Status s = ReadModel(model, parts.get()); !s.ok()) return s;
  DecoderTraits traits;
  traits.byte_level = true;
  for (const std::string& text : parts->texts) parts->bytes.push_back(BytesOf(text, traits));
  return parts;
}

}  // namespace nibble
