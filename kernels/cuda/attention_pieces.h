// SPDX-License-Identifier: Apache-2.0
// What the attention kernels of a step are told, and which piece of it a block takes
// (attention_plan.h).
#pragma once

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/simt.h"

namespace nibble {

struct AttentionParams {
  BatchView batch;
  Floats q;
  int32_t heads, kv_heads, head_dim, group;
  float scale;
  int32_t window;
  float softcap;
  KvLayout kv;
  int32_t part_tiles;  // of decoded sequences
  int32_t capacity;    // parts that `partials` has room for
  float* partials;     // decoded sequences of several parts leave them here
  ActSet out;          // plain floats

  // Of the kSplitRows query heads from `row` on of a kv head, in part `part`.
  NIBBLE_DEVICE float* Partial(int64_t part, int32_t kv_head, int32_t row) const {
    return partials +
           (part * heads + kv_head * group + row) * PartialFloats(PaddedHeadDim(head_dim));
  }
};

// The sum of `value` over this and earlier lanes.
NIBBLE_DEVICE int32_t SumThroughLane(int32_t value) {
  for (int step = 1; step < simt::kWarp; step *= 2) {
    const bool inside = simt::Lane() >= step;
    const int32_t other = simt::Shuffle(value, inside ? simt::Lane() - step : simt::Lane());
    if (inside) value += other;
  }
  return value;
}

// A piece per kv head.
struct AttentionPiece {
  int32_t sequence = -1;   // -1: there are no more
  int32_t index = 0;       // of the sequence's pieces
  int32_t first_part = 0;  // of a split sequence, in `partials`
};

// The warp finds piece `piece` of the split sequences (row_tile 0) or of the others, in tiles of
// `row_tile` rows; every lane gets the answer.
NIBBLE_DEVICE AttentionPiece FindPiece(const AttentionParams& p, int32_t piece, int32_t row_tile) {
  int32_t parts_before = 0, before = 0;
  for (int32_t base = 0; base < p.batch.sequences; base += simt::kWarp) {
    const int32_t sequence = base + simt::Lane();
    int32_t parts = 0, tiles = 0;
    if (sequence < p.batch.sequences) {
      const SequencePlan plan = PlanOf(p.batch, sequence, p.group, p.window);
      parts = plan.Parts(p.part_tiles).count;
      if (row_tile > 0) tiles = plan.RowTiles(row_tile);
    }
    const int32_t parts_through = parts_before + SumThroughLane(parts);
    const bool split = parts > 0 && parts_through <= p.capacity;
    const int32_t pieces =
        row_tile == 0 ? (split ? parts * SplitRowTiles(p.group) : 0) : (split ? 0 : tiles);
    const int32_t through = before + SumThroughLane(pieces);
    const uint32_t reached = simt::Ballot(piece < through);
    if (reached != 0) {
      const int lane = simt::LowestBit(reached);
      return {base + lane, piece - simt::Shuffle(through - pieces, lane),
              simt::Shuffle(parts_through - parts, lane)};
    }
    parts_before = simt::Shuffle(parts_through, simt::kWarp - 1);
    before = simt::Shuffle(through, simt::kWarp - 1);
  }
  return {};
}

}  // namespace nibble
