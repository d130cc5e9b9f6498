// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/gguf_tokenizer.h"

#include <bit>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/cat.h"
#include "engine/tokenizer/gguf_vocab.h"

namespace nibble {
namespace {

using nlohmann::json;

// Protobuf wire format: https://protobuf.dev/programming-guides/encoding.
std::string Varint(uint64_t value) {
  std::string bytes;
  while (value >= 0x80) {
    bytes.push_back(static_cast<char>((value & 0x7f) | 0x80));
    value >>= 7;
  }
  bytes.push_back(static_cast<char>(value));
  return bytes;
}
std::string Tag(uint32_t field, uint32_t wire_type) { return Varint((field << 3) | wire_type); }
std::string VarintField(uint32_t field, uint64_t value) { return Tag(field, 0) + Varint(value); }
std::string BytesField(uint32_t field, std::string_view bytes) {
  return Cat(Tag(field, 2), Varint(bytes.size()), bytes);
}
std::string FloatField(uint32_t field, float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  std::string bytes = Tag(field, 5);
  for (int shift = 0; shift < 32; shift += 8) {
    bytes.push_back(static_cast<char>((bits >> shift) & 0xff));
  }
  return bytes;
}

// Field numbers: google/sentencepiece, sentencepiece_model.proto.
std::string SentencePieceProto(const GgufVocab& vocab) {
  std::string proto;
  for (size_t id = 0; id < vocab.tokens.size(); ++id) {
    proto += BytesField(1, BytesField(1, vocab.tokens[id]) + FloatField(2, vocab.scores[id]) +
                               VarintField(3, static_cast<uint64_t>(vocab.TypeOf(id))));
  }
  const auto id = [](const std::optional<int32_t>& value, int32_t fallback) {
    return static_cast<uint64_t>(value.value_or(fallback));
  };
  proto += BytesField(2, VarintField(3, 2) +  // model_type BPE
                             VarintField(4, vocab.tokens.size()) + VarintField(35, 1) +
                             VarintField(40, id(vocab.unknown_token_id, 0)) +
                             VarintField(41, id(vocab.bos_token_id, 1)) +
                             VarintField(42, id(vocab.eos_token_id, 2)));
  proto += BytesField(3, BytesField(1, "identity") +
                             VarintField(3, vocab.add_space_prefix.value_or(true) ? 1 : 0) +
                             VarintField(4, 0) + VarintField(5, 1));
  return proto;
}

std::string TokenizerJson(const GgufVocab& vocab, bool add_bos) {
  const GgufPre& pre = *FindGgufPre(vocab.pre);
  json tokens = json::object();
  json added = json::array();
  for (size_t id = 0; id < vocab.tokens.size(); ++id) {
    const GgufTokenType type = vocab.TypeOf(id);
    if (IsAddedToken(type)) {
      added.push_back({{"id", id},
                       {"content", vocab.tokens[id]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", type != GgufTokenType::kUserDefined}});
    }
    tokens[vocab.tokens[id]] = id;
  }
  const json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  const json split = {{"type", "Split"},
                      {"pattern", {{"Regex", pre.expression}}},
                      {"behavior", "Isolated"},
                      {"invert", false}};
  json processor;
  if (add_bos) {
    const std::string& bos = vocab.tokens[static_cast<size_t>(*vocab.bos_token_id)];
    const json begin = {{"SpecialToken", {{"id", bos}, {"type_id", 0}}}};
    const auto sequence = [](const char* name, int type) {
      return json{{"Sequence", {{"id", name}, {"type_id", type}}}};
    };
    processor = {{"type", "TemplateProcessing"},
                 {"single", json::array({begin, sequence("A", 0)})},
                 {"pair", json::array({begin, sequence("A", 0), begin, sequence("B", 1)})},
                 {"special_tokens",
                  {{bos,
                    {{"id", bos},
                     {"ids", json::array({*vocab.bos_token_id})},
                     {"tokens", json::array({bos})}}}}}};
  }
  const json document = {
      {"version", "1.0"},
      {"truncation", json()},
      {"padding", json()},
      {"added_tokens", added},
      {"normalizer", json()},
      {"pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", json::array({split, byte_level})}}},
      {"post_processor", processor},
      {"decoder", byte_level},
      {"model",
       {{"type", "BPE"},
        {"dropout", json()},
        {"unk_token", json()},
        {"continuing_subword_prefix", json()},
        {"end_of_word_suffix", json()},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", pre.ignore_merges},
        {"vocab", tokens},
        {"merges", vocab.merges}}}};
  return document.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace

absl::StatusOr<std::map<std::string, std::string>> TokenizerFiles(const GgufVocab& vocab) {
  if (absl::Status status = CheckGgufVocab(vocab); !status.ok()) return status;
  const bool scores = vocab.model == "llama";
  const bool add_bos = GgufAddsBos(vocab);
  std::map<std::string, std::string> files;
  json config = {{"tokenizer_class", scores ? "LlamaTokenizer" : "PreTrainedTokenizerFast"},
                 {"add_bos_token", add_bos}};
  const auto name = [&](const char* key, const std::optional<int32_t>& id) {
    if (id.has_value()) config[key] = vocab.tokens[static_cast<size_t>(*id)];
  };
  name("bos_token", vocab.bos_token_id);
  name("eos_token", vocab.eos_token_id);
  name("unk_token", vocab.unknown_token_id);
  if (!vocab.chat_template.empty()) config["chat_template"] = vocab.chat_template;
  files["tokenizer_config.json"] = config.dump(2, ' ', true, json::error_handler_t::replace) + "\n";
  if (scores) {
    files["tokenizer.model"] = SentencePieceProto(vocab);
    return files;
  }
  files["tokenizer.json"] = TokenizerJson(vocab, add_bos);
  return files;
}

}  // namespace nibble
