// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/gguf_vocab.h"

#include <utility>

#include "engine/base/cat.h"
#include "engine/base/json.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/tokenizer_parts.h"

namespace nibble {
namespace {

constexpr GgufPre kPre[] = {
    {"gpt-2", kGpt2Split, false, false},
    {"llama-bpe", kLlama3Split, true, true},
    {"llama3", kLlama3Split, true, true},
    {"llama-v3", kLlama3Split, true, true},
    {"qwen2", kQwen2Split, false, false},
    {"smaug-bpe", kLlama3Split, true, false},
    {"deepseek-r1-qwen", kQwen2Split, false, false},
};

absl::Status Invalid(std::string_view key, std::string_view problem) {
  return absl::InvalidArgumentError(Cat("tokenizer.ggml.", key, " ", problem));
}

absl::Status Unknown(std::string_view key, const std::string& value, std::string_view known) {
  return absl::UnimplementedError(
      Cat("tokenizer.ggml.", key, " is ", ShownJson(value), ", known are ", known));
}

absl::Status CheckKinds(const GgufVocab& vocab) {
  if (vocab.model == "llama") return absl::OkStatus();
  if (vocab.model != "gpt2") return Unknown("model", vocab.model, "llama, gpt2");
  if (FindGgufPre(vocab.pre) != nullptr) return absl::OkStatus();
  std::string known;
  for (const GgufPre& pre : kPre) known += Cat(known.empty() ? "" : ", ", pre.name);
  return Unknown("pre", vocab.pre, known);
}

}  // namespace

const GgufPre* FindGgufPre(std::string_view name) {
  for (const GgufPre& pre : kPre) {
    if (pre.name == name) return &pre;
  }
  return nullptr;
}

absl::Status CheckGgufVocab(const GgufVocab& vocab) {
  if (absl::Status status = CheckKinds(vocab); !status.ok()) return status;
  const size_t count = vocab.tokens.size();
  if (count == 0 || count > static_cast<size_t>(kMaxTokenId) + 1) {
    return Invalid("tokens", Cat("has ", count, " entries, must have 1 to ", kMaxTokenId + 1));
  }
  if (!vocab.token_type.empty() && vocab.token_type.size() != count) {
    return Invalid("token_type",
                   Cat("has ", vocab.token_type.size(), " entries, tokens has ", count));
  }
  if (vocab.model == "llama" && vocab.scores.size() != count) {
    return Invalid("scores", Cat("has ", vocab.scores.size(), " entries, tokens has ", count));
  }
  const std::pair<const char*, const std::optional<int32_t>*> ids[] = {
      {"bos_token_id", &vocab.bos_token_id},
      {"eos_token_id", &vocab.eos_token_id},
      {"eot_token_id", &vocab.eot_token_id},
      {"unknown_token_id", &vocab.unknown_token_id}};
  for (const auto& [key, id] : ids) {
    if (id->has_value() && (**id < 0 || static_cast<size_t>(**id) >= count)) {
      return Invalid(key, Cat("is ", **id, ", must be in 0..", count - 1));
    }
  }
  for (size_t i = 0; i < vocab.token_type.size(); ++i) {
    if (vocab.token_type[i] < 1 || vocab.token_type[i] > 6) {
      return Invalid("token_type",
                     Cat("of token ", i, " is ", vocab.token_type[i], ", must be in 1..6"));
    }
  }
  return absl::OkStatus();
}

bool GgufAddsBos(const GgufVocab& vocab) {
  const bool by_default = vocab.model == "llama" || FindGgufPre(vocab.pre)->add_bos;
  return vocab.add_bos_token.value_or(by_default) && vocab.bos_token_id.has_value();
}

}  // namespace nibble
