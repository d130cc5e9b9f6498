// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/types/span.h"
#include "engine/tokenizer/text.h"

namespace nibble {

// Byte-pair encoding (Sennrich, Haddow, Birch 2016, arXiv:1508.07909): a word starts as its
// symbols; while some pair of neighbours may merge, the pair with the lowest rank (the leftmost of
// equals) does. Symbols are bytes or characters.
//
// Two families are instances of it. Merge lists (GPT-2, Llama 3, Qwen): the rank is the line in
// the list. SentencePiece scores (Llama 2): any two neighbours whose concatenation is a piece may
// merge, and the rank orders the pieces by falling score.
//
// Immutable and thread-safe. Time is O(n log n) in the word's length.
class BpeModel {
 public:
  // A symbol is a token id, or at `unlisted_base` and above one of `unlisted`.
  struct Merge {
    int32_t left;
    int32_t right;
    uint32_t rank;
    int32_t result;
  };

  struct Spec {
    // Text of every token that merging may produce or start from: raw bytes or UTF-8.
    TextMap<int32_t> pieces;
    std::vector<Merge> merges;
    bool symbols_are_bytes = false;
    // A word that is a piece becomes that piece, merges or no merges.
    bool ignore_merges = false;
    // What becomes of a character that is no piece: its bytes where all of them have a token
    // (byte_ids, -1 for none), else unk_id (-1: nothing), runs as one where fuse_unk.
    std::array<int32_t, 256> byte_ids;
    int32_t unk_id = -1;
    bool fuse_unk = false;
    // Characters that are no token and yet take part in merges (SentencePiece only).
    int32_t unlisted_base = INT32_MAX;
    std::vector<std::string> unlisted;
    // Tokens that may appear on the way and are taken apart again at the end (SentencePiece's
    // UNUSED pieces).
    absl::flat_hash_set<int32_t> unused;

    Spec() { byte_ids.fill(-1); }
  };

  // Work space of one Encode call; not to be shared between threads.
  struct Scratch {
    struct Symbol {
      int32_t id;  // -1: a character that is no symbol
      int32_t prev;
      int32_t next;
      uint32_t offset;
      uint32_t size;  // 0: merged away
    };
    struct Candidate {
      uint32_t rank;
      int32_t pos;
      int32_t result;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    std::vector<Candidate> pairs;  // of a short word: the merge of symbols i and i + 1
    absl::flat_hash_map<int32_t, std::pair<int32_t, int32_t>> unused_parts;
    // Words seen before: where their ids lie in cached_ids. Keys point into the caller's text.
    TextViewMap<std::pair<uint32_t, uint32_t>> cache;
    std::vector<int32_t> cached_ids;
  };

  BpeModel() : BpeModel(Spec()) {}
  explicit BpeModel(Spec spec);

  // Appends the ids of one word to `ids`. A word is valid UTF-8 of less than 2 GiB that outlives
  // `scratch`. A long word is cut first where no merge can reach across, so that text which was
  // never cut into words (Llama 2) is still handled word by word.
  void Encode(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;

 private:
  // Open addressing over a power of two of slots; key 0 is (0,0) and needs a flag of its own, so
  // keys are stored plus one.
  struct MergeSlot {
    uint64_t key = 0;
    uint32_t rank = 0;
    int32_t result = -1;
  };

  const MergeSlot* FindMerge(int32_t left, int32_t right) const;
  int32_t SymbolOf(std::string_view character) const;
  void EncodeCached(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;
  void EncodeUncached(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;
  void StartSymbols(std::string_view word, std::vector<Scratch::Symbol>* symbols) const;
  void MergeShort(Scratch* scratch) const;
  void MergeLong(Scratch* scratch) const;
  void PushCandidate(int32_t left, Scratch* scratch) const;
  void Emit(int32_t symbol, std::string_view text, const Scratch& scratch,
            std::vector<int32_t>* ids) const;
  bool HasAllBytes(std::string_view text) const;
  void EmitUnknown(std::string_view text, std::vector<int32_t>* ids) const;

  Spec spec_;
  std::vector<MergeSlot> table_;
  uint64_t mask_ = 0;
  std::array<int32_t, 256> byte_symbols_;                     // bytes, or ASCII characters
  absl::flat_hash_map<uint32_t, int32_t> character_symbols_;  // by code point
  bool may_cut_ = false;                                      // at U+2581
  absl::flat_hash_set<uint32_t> joined_before_mark_;          // x where some piece has x U+2581
};

}  // namespace nibble
