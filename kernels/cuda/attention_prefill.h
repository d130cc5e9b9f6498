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
  // Stages, then what runs came to, of each thread: its sums, and the states of its two rows, an
  // odd number of units so that threads meet unlike banks.
  static constexpr int kFoldedBytes = (kOperands + 1) * 16;
  static constexpr size_t SharedBytes(int warps) {
    return kStages * kStageBytes + sizeof(Piece) +
           static_cast<size_t>(warps) * simt::kWarp * kFoldedBytes;
  }

  // In shared memory, behind the stages: it would take registers that sums need.
  struct alignas(16) Piece {
    SequencePlan plan;
    int32_t sequence, kv_head, first_row;
    Interval tiles;
  };

  // The state of a thread in a run: rows lane / 4 and lane / 4 + 8 of its warp's.
  struct State {
    float sums[kOperands][4] = {};
    RowState row[2];
  };

  static NIBBLE_DEVICE int Half() { return simt::Afresh(simt::WarpIndex()) % kHalves; }
  static NIBBLE_DEVICE uint8_t* Stage(int stage) { return simt::Shared() + stage * kStageBytes; }
  static NIBBLE_DEVICE Piece& SharedPiece() { return *reinterpret_cast<Piece*>(Stage(kStages)); }
  static NIBBLE_DEVICE uint8_t* Folded(int thread) {  // (kOperands + 1) Vec16 of a thread
    return Stage(kStages) + sizeof(Piece) + thread * kFoldedBytes;
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    simt::WaitForPreviousKernel();
    simt::StartNextKernel();
    const int rows = simt::Threads() / simt::kWarp * kWarpRows;
    for (int64_t item = simt::BlockX();; item += simt::GridX()) {
      const AttentionPiece found = FindPiece(p, static_cast<int32_t>(item / p.kv_heads), rows);
      if (found.sequence < 0) break;
      if (simt::Thread() == 0) {
        const SequencePlan plan = PlanOf(p.batch, found.sequence, p.group, p.window);
        // The rows that see most come first.
        const int32_t first_row = (plan.RowTiles(rows) - 1 - found.index) * rows;
        const int32_t end = first_row + rows;
        const int32_t last_row = (end < plan.rows() ? end : plan.rows()) - 1;
        SharedPiece() = {plan, found.sequence, static_cast<int32_t>(item % p.kv_heads), first_row,
                         VisibleTiles(plan.Position(first_row), plan.Position(last_row), p.window)};
      }
      simt::SyncThreads();
      Attend(p, SharedPiece());
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
    int32_t newest[2];
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int32_t row = warp_row + simt::Lane() / 4 + 8 * h;
      const int32_t token = p.batch.query_start[piece.sequence] + row / p.group;
      const int32_t query = token * p.heads + piece.kv_head * p.group + row % p.group;
      queries[h] = row < piece.plan.rows() ? query : -1;
      newest[h] = row < piece.plan.rows() ? piece.plan.Position(row) : -1;
    }
    // What the warp's first and last row see; none if the tile of rows ends before it.
    const bool any = warp_row < piece.plan.rows();
    const bool full = warp_row + 16 <= piece.plan.rows();
    const int32_t last_row = (full ? warp_row + 16 : piece.plan.rows()) - 1;
    const int32_t least = any ? piece.plan.Position(warp_row) : -1;
    const int32_t most = any ? piece.plan.Position(last_row) : -1;
    const int32_t window = p.window > 0 ? p.window : INT32_MAX;

    State state;
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
      if (first_key <= most && least - last_key < window) {
        const bool masked = !full || last_key > least || most - first_key >= window;
        AttendTile(p, queries, keys, values, first_key, masked, newest, state);
      }
      if (tile == last_tile || (tile + 1) % kRunTiles == 0) {
        FoldRun(folded, tile == last_tile, state);
        folded = true;
      }
    }
    Write(p, piece, warp_row, state);
  }

  static NIBBLE_DEVICE void AttendTile(const Params& p, const typename Scores::Queries& queries,
                                       const uint8_t* keys, const uint8_t* values,
                                       int32_t first_key, bool masked, const int32_t (&newest)[2],
                                       State& state) {
    TileScores scores;
    Scores::Score(p, queries, keys, scores);
    float largest[2], sum[2];
    Scores::Weigh(p, first_key, masked, newest, scores, largest, sum);
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
  static NIBBLE_DEVICE void FoldRun(bool folded, bool last, State& state) {
    if (last && !folded) return;
    auto* kept = reinterpret_cast<simt::Vec16*>(Folded(simt::Thread()));
    RowFold fold[2] = {};
    simt::Vec16 rows = folded ? kept[kOperands] : simt::Vec16{};
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) {
      RowState total = state.row[h];
      if (folded) {
        total = {std::bit_cast<float>(rows.word[2 * h]),
                 std::bit_cast<float>(rows.word[2 * h + 1])};
        fold[h] = total.Take(state.row[h].largest, state.row[h].sum);
      }
      rows.word[2 * h] = std::bit_cast<uint32_t>(total.largest);
      rows.word[2 * h + 1] = std::bit_cast<uint32_t>(total.sum);
      state.row[h] = last ? total : RowState();
    }
    if (!last) kept[kOperands] = rows;
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

  // Through the warp's shared memory, so that rows are written in vectors and in order.
  static NIBBLE_DEVICE void Write(const Params& p, const Piece& piece, int32_t warp_row,
                                  const State& state) {
    constexpr int kColumns = 8 * kOperands, kStride = kColumns + 8;
    auto* rows = reinterpret_cast<float*>(Folded(simt::Thread() - simt::Lane()));
    simt::SyncWarp();
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) {
      const float inverse = 1.0f / state.row[h].sum;
      NIBBLE_UNROLL
      for (int o = 0; o < kOperands; ++o) {
        NIBBLE_UNROLL
        for (int e = 0; e < 2; ++e) {
          rows[(simt::Lane() / 4 + 8 * h) * kStride + Values::Dim(0, o, simt::Lane() % 4 * 2 + e)] =
              state.sums[o][2 * h + e] * inverse;
        }
      }
    }
    simt::SyncWarp();
    NIBBLE_ROLL
    for (int i = simt::Lane(); i < 16 * kColumns / 4; i += simt::kWarp) {
      const int32_t row = warp_row + i / (kColumns / 4);
      const int column = i % (kColumns / 4) * 4;
      const int d = Half() * kColumns + column;
      if (row >= piece.plan.rows() || d >= p.head_dim) continue;
      const int64_t token = p.batch.query_start[piece.sequence] + row / p.group;
      const int64_t head = piece.kv_head * p.group + row % p.group;
      const auto words =
          *reinterpret_cast<const simt::Vec16*>(rows + i / (kColumns / 4) * kStride + column);
      Four four;
      NIBBLE_UNROLL
      for (int e = 0; e < 4; ++e) four.value[e] = std::bit_cast<float>(words.word[e]);
      WriteRowFour<true>(p.out, token, head * p.head_dim + d, four);
    }
  }
};

}  // namespace nibble
