// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/text.h"

namespace nibble {

// A token that is found in text as a whole, before any merging.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;      // a control token: found only where the caller asks for it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space after it
  bool single_word = false;  // not inside a word
  bool normalized = false;   // looked for in the normalised text, else in the raw text
};

// Either text that is still to be tokenized (id < 0) or one token.
struct AddedTokenSpan {
  std::string_view text;
  int32_t id = -1;
};

// Finds added tokens, leftmost first and the longest there. Immutable and thread-safe.
class AddedTokens {
 public:
  AddedTokens() = default;
  // Tokens with empty content are never found. A normalized token's content goes through
  // `normalizer` first, as text does.
  AddedTokens(const std::vector<AddedToken>& tokens, const Normalizer& normalizer);

  // Cut `text` at the tokens that live in raw or normalised text. Special tokens are left as text
  // unless `parse_special`, and where they touch a range of `literal` (ascending, of `text`). Spans
  // are appended and point into `text`.
  void SplitRaw(std::string_view text, bool parse_special, absl::Span<const TextRange> literal,
                std::vector<AddedTokenSpan>* spans) const {
    Split(raw_, text, parse_special, literal, spans);
  }
  void SplitNormalized(std::string_view text, bool parse_special,
                       std::vector<AddedTokenSpan>* spans) const {
    Split(normalized_, text, parse_special, {}, spans);
  }

 private:
  // A byte trie. Node 0 is the root.
  struct Trie {
    std::vector<int32_t> token_at = {-1};           // per node: index into tokens_, or -1
    absl::flat_hash_map<uint64_t, uint32_t> child;  // node << 8 | byte
    std::array<bool, 256> starts = {};

    void Insert(std::string_view content, int32_t token);
    // The longest token at text[pos]: its index (or -1) and its length.
    int32_t LongestMatch(std::string_view text, size_t pos, size_t* length) const;
  };

  void Split(const Trie& trie, std::string_view text, bool parse_special,
             absl::Span<const TextRange> literal, std::vector<AddedTokenSpan>* spans) const;

  std::vector<AddedToken> tokens_;
  Trie raw_;
  Trie normalized_;
};

}  // namespace nibble
