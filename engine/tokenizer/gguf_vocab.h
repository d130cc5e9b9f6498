// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/tokenizer/sentencepiece_model.h"

namespace nibble {

// GGUF numbers the types of tokens as sentencepiece does.
using GgufTokenType = SentencePieceModel::PieceType;

// The tokenizer as a GGUF file stores it (`tokenizer.ggml.*`); the keys' names without the prefix.
struct GgufVocab {
  std::string model;                // "llama" (scores) or "gpt2" (merges)
  std::string pre;                  // "gpt2" only: how words are cut, see FindGgufPre
  std::vector<std::string> tokens;  // by id
  std::vector<float> scores;        // by id; "llama" only
  std::vector<int32_t> token_type;  // by id: GgufTokenType; empty means all normal
  std::vector<std::string> merges;  // "left right" by rank; "gpt2" only
  std::optional<int32_t> bos_token_id;
  std::optional<int32_t> eos_token_id;
  std::optional<int32_t> eot_token_id;  // also ends a generation
  std::optional<int32_t> unknown_token_id;
  std::optional<bool> add_bos_token;     // see GgufAddsBos
  std::optional<bool> add_space_prefix;  // default: true; "llama" only
  std::string chat_template;             // may be empty

  GgufTokenType TypeOf(size_t id) const {
    return token_type.empty() ? GgufTokenType::kNormal : static_cast<GgufTokenType>(token_type[id]);
  }
};

// Whether a text of this token is cut out of a text before words are: the types 2, 3 and 4.
inline bool IsAddedToken(GgufTokenType type) {
  return type == GgufTokenType::kUnknown || type == GgufTokenType::kControl ||
         type == GgufTokenType::kUserDefined;
}

// What a value of tokenizer.ggml.pre stands for.
struct GgufPre {
  std::string_view name;
  const char* expression;  // whose matches are the words
  bool ignore_merges;      // a word that is a token is taken whole
  bool add_bos;            // where add_bos_token does not say
};

// Null if it is none of the known ones.
const GgufPre* FindGgufPre(std::string_view name);

// What everything that takes a GgufVocab relies on: model and (of "gpt2") pre are known, the number
// of tokens is in range, the arrays have one entry for each token, types and ids are in range.
// Unimplemented or InvalidArgument naming the key.
absl::Status CheckGgufVocab(const GgufVocab& vocab);

// Whether a text begins with BOS. `vocab` passes CheckGgufVocab.
bool GgufAddsBos(const GgufVocab& vocab);

}  // namespace nibble
