// SPDX-License-Identifier: Apache-2.0
// How the attention of a step is cut into pieces of work for blocks; the same on host and device.
//
// The rows of a sequence and kv head are its query tokens times the query heads that share the kv
// head: row r is query token r / group, query head r % group of the kv head.
//
// Keys are cut into tiles of kKvBlockTokens and runs of kRunTiles tiles, both from position 0. A
// row's output is a fold over the runs it sees, in order, and within a run over the tiles, whoever
// computes it. A sequence with one query token is split: a run is a piece, and a kernel that
// follows folds the runs. Of any other a piece is a tile of rows, with all its runs.
#pragma once

#include <cstdint>

#include "kernels/ops.h"

namespace nibble {

inline constexpr int kRunTiles = 8;

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

  NIBBLE_HD bool split() const { return tokens == 1; }
  NIBBLE_HD int32_t rows() const { return tokens * group; }
  NIBBLE_HD int32_t Position(int32_t row) const { return context - tokens + row / group; }
  // Of a split sequence.
  NIBBLE_HD Interval Runs() const {
    const Interval tiles = VisibleTiles(context - 1, context - 1, window);
    const int32_t first = tiles.first / kRunTiles;
    return {first, (tiles.first + tiles.count - 1) / kRunTiles - first + 1};
  }
  // Per kv head, for a kernel that takes `row_tile` rows at a time.
  NIBBLE_HD int32_t Pieces(bool for_split, int32_t row_tile) const {
    if (tokens <= 0 || split() != for_split) return 0;
    return (rows() + row_tile - 1) / row_tile * (for_split ? Runs().count : 1);
  }
};

NIBBLE_HD inline SequencePlan PlanOf(const BatchView& batch, int32_t sequence, int32_t group,
                                     int32_t window) {
  return {batch.query_start[sequence + 1] - batch.query_start[sequence],
          batch.context_length[sequence], group, window};
}

// What the host knows of Pieces, all sequences together: not more than this.
inline int64_t MaxRuns(int64_t max_blocks) { return (max_blocks + kRunTiles - 1) / kRunTiles; }
inline int64_t MaxPieces(const BatchView& batch, int32_t group, bool for_split, int32_t row_tile) {
  if (for_split) {
    return batch.sequences * MaxRuns(batch.max_blocks) * ((group + row_tile - 1) / row_tile);
  }
  if (batch.max_query <= 1) return 0;
  return int64_t{batch.rows} * group / row_tile + batch.sequences;
}

// Floats that a run of a split sequence leaves per query head: the sum, not divided (head_dim), the
// largest score, the sum of weights. Runs are counted through all split sequences.
NIBBLE_HD inline int64_t PartialFloats(int32_t head_dim) { return head_dim + 2; }

}  // namespace nibble
