// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/bpe_model.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/sentencepiece_model.h"
#include "engine/tokenizer/text.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble {

// Everything a Tokenizer consists of. Loaders fill it in; FinishParts makes it usable.
struct TokenizerParts {
  // By id; holes have an empty text.
  std::vector<std::string> texts;
  std::vector<std::string> bytes;
  std::vector<bool> special;
  TextMap<int32_t> ids;

  std::vector<AddedToken> added_list;
  AddedTokens added;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  BpeModel model;

  // What surrounds a text when add_bos.
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
  bool add_bos = false;
  std::optional<int32_t> bos_id;
  std::vector<int32_t> eos_ids;
  // Decoding a whole text takes one space from its start.
  bool strip_leading_space = false;

  std::string bos_token;
  std::string eos_token;
  // FinishParts parses the source where there is one.
  std::string chat_template_source;
  std::optional<ChatTemplate> chat_template;
  absl::Status chat_template_status;
};

inline constexpr int32_t kMaxTokenId = (1 << 22) - 1;

// Puts a token into texts and ids (growing the tables). An id out of range or already taken by
// another text is an error.
absl::Status AddToken(int32_t id, std::string_view text, TokenizerParts* parts);

// Marks added tokens, builds their finder, parses the chat template. Call last.
void FinishParts(TokenizerParts* parts);

// The GPT-2 byte alphabet, in which byte-level vocabularies write bytes as characters: printable
// Latin-1 stands for itself, the other bytes for U+0100 onwards in order. Nothing where `text` has
// other characters.
std::optional<std::string> ByteAlphabetToBytes(std::string_view text);

// The byte that "<0x0A>" names.
std::optional<uint8_t> ParseByteToken(std::string_view text);

// How SentencePiece's U+2581 reads: a space.
std::string MarksToSpaces(std::string_view text);

// A merge list's BPE over a byte-level vocabulary (texts in the byte alphabet) or over characters.
// `merges` are pairs of token texts, by rank.
struct MergeListOptions {
  bool byte_level = true;
  bool ignore_merges = false;
  bool byte_fallback = false;
  bool fuse_unk = false;
  std::optional<std::string> unk_token;
};
absl::StatusOr<BpeModel> BuildMergeListModel(
    const TextMap<int32_t>& vocab, const std::vector<std::pair<std::string, std::string>>& merges,
    const MergeListOptions& options);

// One line of a merges.txt: two token texts and a space between them.
absl::StatusOr<std::pair<std::string, std::string>> SplitMergeLine(std::string_view line);

// The parts of a tokenizer, from each format; FinishParts not yet called.
absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromTokenizerJson(std::string_view json);
absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromSentencePiece(std::string_view bytes);
// (Its errors do not say which file the pieces are from.)
absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromPieces(const SentencePieceModel& model);
absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromVocabAndMerges(std::string_view vocab_json,
                                                                        std::string_view merges_txt,
                                                                        WordSplit split);
absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromGguf(const GgufVocab& vocab);

}  // namespace nibble
