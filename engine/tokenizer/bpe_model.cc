// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/bpe_model.h"

#include <algorithm>
#include <utility>

#include "engine/tokenizer/utf8.h"

namespace nibble {
namespace {

constexpr std::string_view kMark = "\xE2\x96\x81";  // U+2581, how SentencePiece writes a space
constexpr uint32_t kMarkCode = 0x2581;
constexpr size_t kShortWord = 24;       // symbols; below this a scan beats a heap
constexpr size_t kMaxCachedBytes = 64;  // longer words seldom come again
constexpr size_t kMaxCachedWords = 1 << 16;

uint64_t KeyOf(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right)) +
         1;
}

uint64_t HashOf(uint64_t key) {
  key *= 0x9E3779B97F4A7C15u;
  return key ^ (key >> 32);
}

// Heap order: std::push_heap keeps the "largest" on top, so this is "comes later".
bool ComesLater(const BpeModel::Scratch::Candidate& a, const BpeModel::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.pos > b.pos;
}

}  // namespace

BpeModel::BpeModel(Spec spec) : spec_(std::move(spec)) {
  size_t slots = 16;
  while (slots < spec_.merges.size() * 2) slots *= 2;
  table_.resize(slots);
  mask_ = slots - 1;
  for (const Merge& merge : spec_.merges) {
    const uint64_t key = KeyOf(merge.left, merge.right);
    uint64_t at = HashOf(key) & mask_;
    while (table_[at].key != 0 && table_[at].key != key) at = (at + 1) & mask_;
    table_[at] = {key, merge.rank, merge.result};
  }
  spec_.merges = {};

  byte_symbols_.fill(-1);
  const auto add_character = [&](std::string_view text, int32_t symbol) {
    if (text.empty()) return;
    if (spec_.symbols_are_bytes) {
      if (text.size() == 1) byte_symbols_[static_cast<uint8_t>(text[0])] = symbol;
      return;
    }
    const Utf8Char c = DecodeUtf8(text, 0);
    if (!c.valid || c.size != text.size()) return;
    if (c.code < 0x80) {
      byte_symbols_[c.code] = symbol;
    } else {
      character_symbols_[c.code] = symbol;
    }
  };
  for (const auto& [text, id] : spec_.pieces) {
    add_character(text, id);
    if (spec_.symbols_are_bytes) continue;
    uint32_t previous = kMarkCode;
    for (size_t pos = 0; pos < text.size();) {
      const Utf8Char c = DecodeUtf8(text, pos);
      if (c.code == kMarkCode) joined_before_mark_.insert(previous);
      previous = c.code;
      pos += c.size;
    }
  }
  for (size_t i = 0; i < spec_.unlisted.size(); ++i) {
    add_character(spec_.unlisted[i], spec_.unlisted_base + static_cast<int32_t>(i));
  }
  // Marks stay together: a run of spaces is often one piece.
  joined_before_mark_.insert(kMarkCode);
  may_cut_ = !spec_.symbols_are_bytes && !spec_.ignore_merges && SymbolOf(kMark) >= 0;
  if (!spec_.ignore_merges) spec_.pieces = {};
}

const BpeModel::MergeSlot* BpeModel::FindMerge(int32_t left, int32_t right) const {
  if (left < 0 || right < 0) return nullptr;
  const uint64_t key = KeyOf(left, right);
  for (uint64_t at = HashOf(key) & mask_;; at = (at + 1) & mask_) {
    if (table_[at].key == key) return &table_[at];
    if (table_[at].key == 0) return nullptr;
  }
}

int32_t BpeModel::SymbolOf(std::string_view character) const {
  const auto first = static_cast<uint8_t>(character[0]);
  if (first < 0x80 || spec_.symbols_are_bytes) return byte_symbols_[first];
  const auto it = character_symbols_.find(DecodeUtf8(character, 0).code);
  return it == character_symbols_.end() ? -1 : it->second;
}

void BpeModel::Encode(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const {
  if (may_cut_) {
    size_t begin = 0;
    uint32_t previous = kMarkCode;
    for (size_t pos = 0; pos < word.size();) {
      const Utf8Char c = DecodeUtf8(word, pos);
      if (c.code == kMarkCode && !joined_before_mark_.contains(previous)) {
        EncodeCached(word.substr(begin, pos - begin), scratch, ids);
        begin = pos;
      }
      previous = c.code;
      pos += c.size;
    }
    word.remove_prefix(begin);
  }
  EncodeCached(word, scratch, ids);
}

void BpeModel::EncodeCached(std::string_view word, Scratch* scratch,
                            std::vector<int32_t>* ids) const {
  if (word.size() > kMaxCachedBytes) {
    EncodeUncached(word, scratch, ids);
    return;
  }
  const auto it = scratch->cache.find(word);
  if (it != scratch->cache.end()) {
    const auto begin = scratch->cached_ids.begin() + it->second.first;
    ids->insert(ids->end(), begin, begin + it->second.second);
    return;
  }
  const size_t before = ids->size();
  EncodeUncached(word, scratch, ids);
  if (scratch->cache.size() < kMaxCachedWords) {
    const auto added = static_cast<uint32_t>(ids->size() - before);
    scratch->cache.emplace(
        word, std::make_pair(static_cast<uint32_t>(scratch->cached_ids.size()), added));
    scratch->cached_ids.insert(scratch->cached_ids.end(), ids->end() - added, ids->end());
  }
}

void BpeModel::EncodeUncached(std::string_view word, Scratch* scratch,
                              std::vector<int32_t>* ids) const {
  if (word.empty()) return;
  if (spec_.ignore_merges) {
    const auto it = spec_.pieces.find(word);
    if (it != spec_.pieces.end()) {
      ids->push_back(it->second);
      return;
    }
  }
  StartSymbols(word, &scratch->symbols);
  if (scratch->symbols.size() <= kShortWord && spec_.unused.empty()) {
    MergeShort(scratch);
  } else {
    MergeLong(scratch);
  }
  const size_t first = ids->size();
  bool after_unknown = false;
  for (const Scratch::Symbol& symbol : scratch->symbols) {
    if (symbol.size == 0) continue;
    const size_t before = ids->size();
    Emit(symbol.id, word.substr(symbol.offset, symbol.size), *scratch, ids);
    const bool unknown = ids->size() == before + 1 && ids->back() == spec_.unk_id;
    if (unknown && after_unknown && spec_.fuse_unk && before > first) ids->pop_back();
    after_unknown = unknown;
  }
}

void BpeModel::StartSymbols(std::string_view word, std::vector<Scratch::Symbol>* symbols) const {
  symbols->clear();
  for (size_t pos = 0; pos < word.size();) {
    const size_t size = spec_.symbols_are_bytes ? 1 : DecodeUtf8(word, pos).size;
    const std::string_view text = word.substr(pos, size);
    const int32_t symbol = SymbolOf(text);
    // A character that nothing stands for vanishes before merging, and its neighbours meet.
    if (symbol >= 0 || spec_.unk_id >= 0 || HasAllBytes(text)) {
      const auto index = static_cast<int32_t>(symbols->size());
      symbols->push_back(
          {symbol, index - 1, index + 1, static_cast<uint32_t>(pos), static_cast<uint32_t>(size)});
    }
    pos += size;
  }
  if (!symbols->empty()) symbols->back().next = -1;
}

void BpeModel::MergeShort(Scratch* scratch) const {
  std::vector<Scratch::Symbol>& symbols = scratch->symbols;
  std::vector<Scratch::Candidate>& pairs = scratch->pairs;
  const auto pair_at = [&](size_t i) {
    const MergeSlot* slot = FindMerge(symbols[i].id, symbols[i + 1].id);
    return slot == nullptr ? Scratch::Candidate{UINT32_MAX, 0, -1}
                           : Scratch::Candidate{slot->rank, 0, slot->result};
  };
  pairs.clear();
  for (size_t i = 0; i + 1 < symbols.size(); ++i) pairs.push_back(pair_at(i));
  while (!pairs.empty()) {
    size_t best = 0;
    for (size_t i = 1; i < pairs.size(); ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].result < 0) return;
    symbols[best].id = pairs[best].result;
    symbols[best].size += symbols[best + 1].size;
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    pairs.erase(pairs.begin() + static_cast<ptrdiff_t>(best));
    if (best > 0) pairs[best - 1] = pair_at(best - 1);
    if (best < pairs.size()) pairs[best] = pair_at(best);
  }
}

void BpeModel::PushCandidate(int32_t left, Scratch* scratch) const {
  const Scratch::Symbol& l = scratch->symbols[static_cast<size_t>(left)];
  if (l.next < 0) return;
  const Scratch::Symbol& r = scratch->symbols[static_cast<size_t>(l.next)];
  const MergeSlot* slot = FindMerge(l.id, r.id);
  if (slot == nullptr) return;
  scratch->heap.push_back({slot->rank, left, slot->result});
  std::push_heap(scratch->heap.begin(), scratch->heap.end(), ComesLater);
  if (spec_.unused.contains(slot->result)) scratch->unused_parts[slot->result] = {l.id, r.id};
}

void BpeModel::MergeLong(Scratch* scratch) const {
  std::vector<Scratch::Symbol>& symbols = scratch->symbols;
  scratch->heap.clear();
  for (size_t i = 0; i < symbols.size(); ++i) PushCandidate(static_cast<int32_t>(i), scratch);
  while (!scratch->heap.empty()) {
    std::pop_heap(scratch->heap.begin(), scratch->heap.end(), ComesLater);
    const Scratch::Candidate top = scratch->heap.back();
    scratch->heap.pop_back();
    Scratch::Symbol& left = symbols[static_cast<size_t>(top.pos)];
    if (left.size == 0 || left.next < 0) continue;
    Scratch::Symbol& right = symbols[static_cast<size_t>(left.next)];
    // The candidate may be stale: a neighbour has merged since.
    const MergeSlot* slot = FindMerge(left.id, right.id);
    if (slot == nullptr || slot->result != top.result) continue;
    left.id = top.result;
    left.size += right.size;
    left.next = right.next;
    right.size = 0;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].prev = top.pos;
    if (left.prev >= 0) PushCandidate(left.prev, scratch);
    PushCandidate(top.pos, scratch);
  }
}

void BpeModel::Emit(int32_t symbol, std::string_view text, const Scratch& scratch,
                    std::vector<int32_t>* ids) const {
  if (symbol < 0) {
    EmitUnknown(text, ids);
    return;
  }
  if (symbol >= spec_.unlisted_base) {
    EmitUnknown(spec_.unlisted[static_cast<size_t>(symbol - spec_.unlisted_base)], ids);
    return;
  }
  if (!spec_.unused.empty() && spec_.unused.contains(symbol)) {
    const auto it = scratch.unused_parts.find(symbol);
    if (it != scratch.unused_parts.end()) {
      // Parts are shorter than the whole, so this ends.
      Emit(it->second.first, text, scratch, ids);
      Emit(it->second.second, text, scratch, ids);
      return;
    }
  }
  ids->push_back(symbol);
}

bool BpeModel::HasAllBytes(std::string_view text) const {
  return std::all_of(text.begin(), text.end(),
                     [this](char c) { return spec_.byte_ids[static_cast<uint8_t>(c)] >= 0; });
}

void BpeModel::EmitUnknown(std::string_view text, std::vector<int32_t>* ids) const {
  if (HasAllBytes(text)) {
    for (const char c : text) ids->push_back(spec_.byte_ids[static_cast<uint8_t>(c)]);
  } else if (spec_.unk_id >= 0) {
    ids->push_back(spec_.unk_id);
  }
}

}  // namespace nibble
