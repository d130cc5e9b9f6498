// SPDX-License-Identifier: Apache-2.0
// How the attention of a step is cut into pieces of work for blocks; the same on host and device.
//
// The rows of a sequence and kv head are its query tokens times the query heads that share the kv
// head: row r is query token r / group, query head r % group of the kv head.
//
// Keys are cut into tiles of kKvBlockTokens and runs of kRunTiles tiles, both from position 0. A
// row's output is a fold over the runs it sees, in order, and a run is a fold over its tiles, in
// order, whoever computes them: how the work is cut changes no bit.
//
// A sequence with one query token is split into parts of one tile or one run, if there is memory
// for what all parts leave behind. A part and kSplitRows query heads are a piece, and a kernel that
// follows folds the parts. Tiles are for short contexts, which would not be enough pieces
// otherwise. Of any other sequence a piece is a tile of rows with all the keys that they see.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/ops.h"

namespace nibble {

inline constexpr int kRunTiles = 8;
inline constexpr int kSplitRows = 8;

struct Interval {
  int32_t first = 0;
  int32_t count = 0;
};

// Tiles that hold a key which a query at a position from `oldest` to `newest` sees.
NIBBLE_HD inline Interval VisibleTiles(int32_t oldest, int32_t newest, int32_t window) {
  const int32_t key = window > 0 && oldest >= window ? oldest - window + 1 : 0;
  const int32_t first = key / kKvBlockTokens;
  return {first, newest / kKvBlockTokens - first + 1};
}

struct SequencePlan {
  int32_t tokens = 0;   // of this step
  int32_t context = 0;  // tokens in the cache after it
  int32_t group = 1;    // query heads per kv head
  int32_t window = 0;

  NIBBLE_HD int32_t rows() const { return tokens * group; }
  NIBBLE_HD int32_t Position(int32_t row) const { return context - tokens + row / group; }
  // Of a sequence that may be split, in parts of `part_tiles` tiles; none of another.
  NIBBLE_HD Interval Parts(int32_t part_tiles) const {
    if (tokens != 1) return {};
    const Interval tiles = VisibleTiles(context - 1, context - 1, window);
    const int32_t first = tiles.first / part_tiles;
    return {first, (tiles.first + tiles.count - 1) / part_tiles - first + 1};
  }
  // Of a sequence that is not split.
  NIBBLE_HD int32_t RowTiles(int32_t row_tile) const { return (rows() + row_tile - 1) / row_tile; }
};

NIBBLE_HD inline SequencePlan PlanOf(const BatchView& batch, int32_t sequence, int32_t group,
                                     int32_t window) {
  return {batch.query_start[sequence + 1] - batch.query_start[sequence],
          batch.context_length[sequence], group, window};
}

NIBBLE_HD inline int32_t SplitRowTiles(int32_t group) {
  return (group + kSplitRows - 1) / kSplitRows;
}

// ---- What a part leaves behind, of kSplitRows query heads

// Per lane, the pairs of sums of its operands' columns (as many as padded_dim / 8), then {largest
// score, sum of weights}. Lanes 4 r .. 4 r + 3 belong to row r; those of rows that a group does not
// have leave nothing. Counted in floats, per query head.
NIBBLE_HD inline int64_t PartialFloats(int32_t padded_dim) { return padded_dim + 8; }
// head_dim as the kernels see it.
NIBBLE_HD inline int32_t PaddedHeadDim(int32_t head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
}

// Parts that the memory is for: every run of every sequence up to two million tokens of context,
// every tile of a step that is cut into tiles.
inline constexpr int64_t kMaxPartialRuns = 4096;
inline constexpr int64_t kMaxPartialTiles = 1024;
inline int64_t MaxParts(int64_t max_blocks, int32_t part_tiles) {
  return (max_blocks + part_tiles - 1) / part_tiles;
}
inline int64_t PartialCapacity(int64_t sequences, int64_t max_blocks) {
  const int64_t runs = std::min(sequences * MaxParts(max_blocks, kRunTiles), kMaxPartialRuns);
  return std::max(runs, std::min(sequences * max_blocks, kMaxPartialTiles));
}

// ---- What the host knows of pieces per kv head, all sequences together: not more than this

inline int64_t MaxSplitPieces(const BatchView& batch, int32_t group, int32_t part_tiles) {
  return batch.sequences * MaxParts(batch.max_blocks, part_tiles) * SplitRowTiles(group);
}
inline int64_t MaxRowPieces(const BatchView& batch, int32_t group, int32_t row_tile,
                            int32_t part_tiles, int64_t capacity) {
  const int64_t parts = batch.sequences * MaxParts(batch.max_blocks, part_tiles);
  if (batch.max_query <= 1 && parts <= capacity) return 0;
  return int64_t{batch.rows} * group / row_tile + batch.sequences;
}

}  // namespace nibble
