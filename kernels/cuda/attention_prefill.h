// SPDX-License-Identifier: Apache-2.0
// Attention of sequences that are not split (attention_plan.h), over pages of any KV format.
//
// Tiling: a block takes a tile of rows, 16 for each warp (of the widest heads: for two warps), and
// walks the tiles of keys that they see; two stages of shared memory, one barrier a tile, nothing
// is exchanged between warps. The sums of the run under way stay in registers; a tile's sums of
// eight columns are added as soon as they are complete. What runs came to is folded in shared
// memory, every kRunTiles tiles.
//
// Limit: the rate of m16n8k16, 128 for a tile and warp with heads of 128. Beside it shared memory
// gives the warp 32 KB of operands in 256 cycles, half of its bandwidth at four tenths of the
// dense rate; the exponentials are 32 of 16 lanes a cycle; codes add what they take to expand, by
// every warp for itself. Not measured yet.
#pragma once

#include "kernels/cuda/attention_values.h"
#include "kernels/cuda/row_writer.h"

namespace nibble {

template <KvCode kKeyCode, KvCode kValueCode, int kDim>
struct AttentionPrefillKernel {
  using Params = AttentionParams;
  // Warps that share 16 rows, each with half of the head: the sums of all would not fit registers.
  static constexpr int kHalves = kDim == 256 ? 2 : 1;
  using Scores = ScoreTile<kKeyCode, kDim, 2>;
  using Values = ValueTile<kValueCode, kDim, 2, kHalves, true>;
  static constexpr int kMaxWarps = 8;
  static constexpr int kThreads = kMaxWarps * simt::kWarp;
  static constexpr int kMinBlocks = 1;
  static constexpr int kOperands = Values::kOperands;
  static constexpr int kStageBytes = Scores::Part::kBytes + Values::Part::kBytes;
  static constexpr int kStages = kDim == 256 ? 1 : 2;

  static constexpr int kWarpRows = 16 / kHalves;  // on average
  // Stages, then what runs came to: of each thread, with 16 bytes between two so that they meet
  // unlike banks.
  static constexpr int kFoldedBytes = kOperands * 16 + 16;
  static constexpr size_t SharedBytes(int warps) {
    return static_cast<size_t>(kStages * kStageBytes + warps * simt::kWarp * kFoldedBytes);
  }

  struct Piece {
    SequencePlan plan;
    int32_t sequence, kv_head, first_row;
    Interval tiles;
  };

  // The state of a thread: rows lane / 4 and lane / 4 + 8 of its warp's.
  struct State {
    float sums[kOperands][4] = {};
    RowState row[2];
  };

  static NIBBLE_DEVICE int Half() { return simt::Afresh(simt::WarpIndex()) % kHalves; }
  static NIBBLE_DEVICE uint8_t* Stage(int stage) { return simt::Shared() + stage * kStageBytes; }
  static NIBBLE_DEVICE simt::Vec16* Folded() {  // (kOperands), of this thread
    return reinterpret_cast<simt::Vec16*>(Stage(kStages) + simt::Thread() * kFoldedBytes);
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    simt::WaitForPreviousKernel();
    simt::StartNextKernel();
    const int rows = simt::Threads() / simt::kWarp * kWarpRows;
    for (int64_t item = simt::BlockX();; item += simt::GridX()) {
      const AttentionPiece found = FindPiece(p, static_cast<int32_t>(item / p.kv_heads), rows);
      if (found.sequence < 0) break;
      Piece piece;
      piece.sequence = found.sequence;
      piece.kv_head = static_cast<int32_t>(item % p.kv_heads);
      piece.plan = PlanOf(p.batch, found.sequence, p.group, p.window);
      // The rows that see most come first.
      piece.first_row = (piece.plan.RowTiles(rows) - 1 - found.index) * rows;
      const int32_t end = piece.first_row + rows;
      const int32_t last_row = (end < piece.plan.rows() ? end : piece.plan.rows()) - 1;
      piece.tiles = VisibleTiles(piece.plan.Position(piece.first_row),
                                 piece.plan.Position(last_row), p.window);
      Attend(p, piece);
      simt::SyncThreads();
    }
  }

  static NIBBLE_DEVICE void LoadTile(const Params& p, const Piece& piece, int32_t tile,
                                     uint8_t* stage) {
    const int32_t block = p.batch.block_table[int64_t{piece.sequence} * p.batch.max_blocks + tile];
    const uint8_t* head = p.kv.Head(block, piece.kv_head);
    const int tokens = piece.plan.context - tile * kKvBlockTokens;
    const int thread = simt::Afresh(simt::Thread());  // or addresses stay in registers meanwhile
    Scores::Part::Load(head, head + p.kv.key_scales, p.head_dim, tokens, stage, thread,
                       simt::Threads());
    Values::Part::Load(head + p.kv.value_codes, head + p.kv.value_scales, p.head_dim, tokens,
                       stage + Scores::Part::kBytes, thread, simt::Threads());
  }

  static NIBBLE_DEVICE void Attend(const Params& p, const Piece& piece) {
    const int32_t last_tile = piece.tiles.first + piece.tiles.count - 1;
    if (kStages == 2) LoadTile(p, piece, piece.tiles.first, Stage(0));
    simt::CommitCopies();
    const int32_t warp_row = piece.first_row + simt::WarpIndex() / kHalves * 16;
    typename Scores::Queries queries;
    int32_t newest[2], oldest[2];
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int32_t row = warp_row + simt::Lane() / 4 + 8 * h;
      const int64_t token = p.batch.query_start[piece.sequence] + row / p.group;
      const int64_t head = token * p.heads + piece.kv_head * p.group + row % p.group;
      queries[h] = row < piece.plan.rows() ? head * p.head_dim : -1;
      newest[h] = row < piece.plan.rows() ? piece.plan.Position(row) : -1;
      oldest[h] = p.window > 0 ? newest[h] - p.window + 1 : 0;
    }
    // What the warp's first and last row see; none if the tile of rows ends before it.
    const bool any = warp_row < piece.plan.rows();
    const bool full = warp_row + 16 <= piece.plan.rows();
    const int32_t last_row = (full ? warp_row + 16 : piece.plan.rows()) - 1;
    const int32_t least = any ? piece.plan.Position(warp_row) : -1;
    const int32_t most = any ? piece.plan.Position(last_row) : -1;
    const int32_t least_oldest = p.window > 0 ? least - p.window + 1 : 0;
    const int32_t most_oldest = p.window > 0 ? most - p.window + 1 : 0;

    State state;
    RowState total[2];
    bool folded = false;
    for (int32_t tile = piece.tiles.first; tile <= last_tile; ++tile) {
      const int stage = kStages == 2 ? (tile - piece.tiles.first) % 2 : 0;
      if constexpr (kStages == 1) {
        simt::SyncThreads();
        LoadTile(p, piece, tile, Stage(0));
        simt::CommitCopies();
      }
      simt::WaitCopies<0>();
      simt::SyncThreads();
      if (kStages == 2 && tile < last_tile) {
        LoadTile(p, piece, tile + 1, Stage(1 - stage));
        simt::CommitCopies();
      }
      uint8_t* keys = Stage(stage);
      uint8_t* values = keys + Scores::Part::kBytes;
      const int tokens = piece.plan.context - tile * kKvBlockTokens;
      if (Values::kScaled && tokens < kKvBlockTokens) {
        Values::Part::ClearScales(values, tokens, simt::Thread(), simt::Threads());
        simt::SyncThreads();
      }
      const int32_t first_key = tile * kKvBlockTokens;
      const int32_t last_key = first_key + kKvBlockTokens - 1;
      if (first_key <= most && last_key >= least_oldest) {
        const bool masked = !full || last_key > least || first_key < most_oldest;
        AttendTile(p, queries, keys, values, first_key, masked, newest, oldest, state);
      }
      if (tile == last_tile || (tile + 1) % kRunTiles == 0) {
        FoldRun(folded, tile == last_tile, state, total);
        folded = true;
      }
    }
    Write(p, piece, warp_row, state, total);
  }

  static NIBBLE_DEVICE void AttendTile(const Params& p, const typename Scores::Queries& queries,
                                       const uint8_t* keys, const uint8_t* values,
                                       int32_t first_key, bool masked, const int32_t (&newest)[2],
                                       const int32_t (&oldest)[2], State& state) {
    TileScores scores;
    Scores::Score(p, queries, keys, scores);
    float largest[2], sum[2];
    Scores::Weigh(p, first_key, masked, newest, oldest, scores, largest, sum);
    RowFold fold[2];
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) fold[h] = state.row[h].Take(largest[h], sum[h]);
    // Rarely after the first tiles; a product with one changes nothing.
    if (simt::Ballot(fold[0].keep != 1.0f || fold[1].keep != 1.0f) != 0) {
      NIBBLE_UNROLL
      for (int o = 0; o < kOperands; ++o) {
        NIBBLE_UNROLL
        for (int e = 0; e < 4; ++e) state.sums[o][e] *= fold[e / 2].keep;
      }
    }
    Values::Sum(values, scores, Half(), [&state, &fold](int operand, const float(&sums)[4]) {
      NIBBLE_UNROLL
      for (int e = 0; e < 4; ++e) {
        state.sums[operand][e] = std::fma(sums[e], fold[e / 2].add, state.sums[operand][e]);
      }
    });
  }

  // The run into those before it; after the last one the state holds the result.
  static NIBBLE_DEVICE void FoldRun(bool folded, bool last, State& state, RowState (&total)[2]) {
    RowFold fold[2] = {};
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) {
      if (folded) {
        fold[h] = total[h].Take(state.row[h].largest, state.row[h].sum);
      } else {
        total[h] = state.row[h];
      }
      state.row[h] = RowState();
    }
    if (last && !folded) return;
    simt::Vec16* kept = Folded();
    NIBBLE_UNROLL
    for (int o = 0; o < kOperands; ++o) {
      if (o % 2 == 0) simt::SyncWarp();  // not all loads at once
      const simt::Vec16 before = folded ? kept[o] : simt::Vec16{};
      simt::Vec16 now{};
      NIBBLE_UNROLL
      for (int e = 0; e < 4; ++e) {
        float& sum = state.sums[o][e];
        if (folded) sum = Fold(fold[e / 2], std::bit_cast<float>(before.word[e]), sum);
        now.word[e] = std::bit_cast<uint32_t>(sum);
        if (!last) sum = 0.0f;
      }
      if (!last) kept[o] = now;
    }
  }

  static NIBBLE_DEVICE void Write(const Params& p, const Piece& piece, int32_t warp_row,
                                  const State& state, const RowState (&total)[2]) {
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int32_t row = warp_row + simt::Lane() / 4 + 8 * h;
      if (row >= piece.plan.rows()) break;
      const int64_t token = p.batch.query_start[piece.sequence] + row / p.group;
      const int64_t head = piece.kv_head * p.group + row % p.group;
      const float inverse = 1.0f / total[h].sum;
      NIBBLE_UNROLL
      for (int o = 0; o < kOperands; ++o) {
        NIBBLE_UNROLL
        for (int e = 0; e < 2; ++e) {
          const int d = Values::Dim(Half(), o, simt::Afresh(simt::Lane()) % 4 * 2 + e);
          if (d >= p.head_dim) continue;
          WriteRowFloat(p.out, token, head * p.head_dim + d, state.sums[o][2 * h + e] * inverse);
        }
      }
    }
  }
};

}  // namespace nibble
