// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/added_tokens.h"

#include <unicode/uchar.h>

#include <algorithm>

#include "engine/tokenizer/utf8.h"

namespace nibble {
namespace {

// Start of the character that ends right before `pos` (pos > 0).
size_t PreviousCharacter(std::string_view text, size_t pos) {
  --pos;
  while (pos > 0 && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80) --pos;
  return pos;
}

bool IsSpaceAt(std::string_view text, size_t pos) {
  return u_isUWhiteSpace(static_cast<UChar32>(DecodeUtf8(text, pos).code)) != 0;
}

bool IsWordAt(std::string_view text, size_t pos) {
  const auto code = static_cast<UChar32>(DecodeUtf8(text, pos).code);
  return u_isUAlphabetic(code) ||
         (U_GET_GC_MASK(code) & (U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK)) != 0;
}

bool StandsAlone(std::string_view text, size_t begin, size_t end) {
  const bool word_before = begin > 0 && IsWordAt(text, PreviousCharacter(text, begin));
  const bool word_after = end < text.size() && IsWordAt(text, end);
  return !word_before && !word_after;
}

}  // namespace

void AddedTokens::Trie::Insert(std::string_view content, int32_t token) {
  if (content.empty()) return;
  uint64_t node = 0;
  starts[static_cast<uint8_t>(content[0])] = true;
  for (const char c : content) {
    const uint64_t key = node << 8 | static_cast<uint8_t>(c);
    const auto [it, inserted] = child.try_emplace(key, static_cast<uint32_t>(token_at.size()));
    if (inserted) token_at.push_back(-1);
    node = it->second;
  }
  if (token_at[node] < 0) token_at[node] = token;
}

int32_t AddedTokens::Trie::LongestMatch(std::string_view text, size_t pos, size_t* length) const {
  int32_t found = -1;
  uint64_t node = 0;
  for (size_t i = pos; i < text.size(); ++i) {
    const auto it = child.find(node << 8 | static_cast<uint8_t>(text[i]));
    if (it == child.end()) break;
    node = it->second;
    if (token_at[node] >= 0) {
      found = token_at[node];
      *length = i + 1 - pos;
    }
  }
  return found;
}

AddedTokens::AddedTokens(const std::vector<AddedToken>& tokens, const Normalizer& normalizer)
    : tokens_(tokens) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const auto index = static_cast<int32_t>(i);
    if (tokens_[i].normalized) {
      normalized_.Insert(normalizer.Apply(tokens_[i].content, true), index);
    } else {
      raw_.Insert(tokens_[i].content, index);
    }
  }
}

void AddedTokens::Split(const Trie& trie, std::string_view text, bool parse_special,
                        absl::Span<const TextRange> literal,
                        std::vector<AddedTokenSpan>* spans) const {
  size_t done = 0;
  const auto add_text = [&](size_t end) {
    if (end > done) spans->push_back({text.substr(done, end - done), -1});
  };
  for (size_t pos = 0; pos < text.size();) {
    size_t length = 0;
    const int32_t index =
        trie.starts[static_cast<uint8_t>(text[pos])] ? trie.LongestMatch(text, pos, &length) : -1;
    if (index < 0) {
      ++pos;
      continue;
    }
    size_t begin = pos;
    size_t end = pos + length;
    pos = end;
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    if (token.special && (!parse_special || Touches(literal, begin, end))) continue;
    if (token.single_word && !StandsAlone(text, begin, end)) continue;
    if (token.lstrip) {
      while (begin > done) {
        const size_t previous = PreviousCharacter(text, begin);
        if (previous < done || !IsSpaceAt(text, previous)) break;
        begin = previous;
      }
    }
    if (token.rstrip) {
      while (end < text.size() && IsSpaceAt(text, end)) end += DecodeUtf8(text, end).size;
    }
    add_text(begin);
    spans->push_back({text.substr(begin, end - begin), token.id});
    done = end;
    pos = std::max(pos, end);
  }
  add_text(text.size());
}

}  // namespace nibble
