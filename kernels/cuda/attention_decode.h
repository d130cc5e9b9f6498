// SPDX-License-Identifier: Apache-2.0
// Attention of split sequences (attention_plan.h), one query token each, over pages of any KV
// format.
//
// Tiling: a piece is a part of a sequence's keys and up to 8 query heads of a kv head. Every warp
// of a block takes every n-th tile of the part for itself: its own page of shared memory, of which
// the half with keys is filled anew while the values are at work and the other way round; no
// barrier until its sums are complete. Then the block folds the tiles of a round, in order. Parts
// of one tile have blocks of one warp and nothing to fold.
//
// Limit: bytes of the cache, read once per 8 query heads of a kv head. Beside them stand, per tile
// and warp, about 2 instructions for each lane's code of int8 (512 codes for a head of 128) and
// 1.4 of int4, which leaves the issue slots of an H100 two thirds idle at 3 TB/s: what counts is
// that enough bytes are on their way, three quarters of shared memory. Not measured yet.
#pragma once

#include "kernels/cuda/attention_values.h"
#include "kernels/cuda/row_writer.h"

namespace nibble {

template <KvCode kKeyCode, KvCode kValueCode, int kDim>
struct AttentionDecodeKernel {
  using Params = AttentionParams;
  using Scores = ScoreTile<kKeyCode, kDim, 1>;
  using Values = ValueTile<kValueCode, kDim, 1, 1, false>;
  static constexpr int kWarpRows = kSplitRows;
  static constexpr int kMaxWarps = 4;
  static constexpr int kMinWarps = 2;  // of parts of a run
  static constexpr int kThreads = kMaxWarps * simt::kWarp;
  static constexpr int kMinBlocks = 3;
  // What a warp's tile comes to: pairs of sums per lane, then {largest, sum} (attention_plan.h).
  static constexpr int kOperands = Values::kOperands;
  static constexpr int kResultBytes = (kOperands + 1) * simt::kWarp * 8;
  static constexpr int kWarpBytes = Scores::Part::kBytes + Values::Part::kBytes + kResultBytes;
  // Of a thread that folds.
  static constexpr int kOwn = kOperands / kMinWarps;

  static constexpr size_t SharedBytes(int warps) { return static_cast<size_t>(warps) * kWarpBytes; }

  // What a warp needs to know of its piece.
  struct Piece {
    SequencePlan plan;
    int32_t sequence, kv_head, first_row, rows;
    int32_t first_tile, end_tile;  // of one run
    int64_t part;  // in the partial results; -1: it is the only one, the output is written at once
  };

  static NIBBLE_DEVICE int Warps() { return simt::Threads() / simt::kWarp; }
  static NIBBLE_DEVICE int FirstOperand() { return simt::WarpIndex() * (kOperands / Warps()); }
  static NIBBLE_DEVICE uint8_t* Keys(int warp) { return simt::Shared() + warp * kWarpBytes; }
  static NIBBLE_DEVICE uint8_t* ValuesOf(int warp) { return Keys(warp) + Scores::Part::kBytes; }
  static NIBBLE_DEVICE simt::Vec8* Result(int warp) {  // (kOperands + 1, lanes)
    return reinterpret_cast<simt::Vec8*>(ValuesOf(warp) + Values::Part::kBytes);
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    simt::WaitForPreviousKernel();
    simt::StartNextKernel();
    const int32_t row_tiles = SplitRowTiles(p.group);
    for (int64_t item = simt::BlockX();; item += simt::GridX()) {
      const AttentionPiece found = FindPiece(p, static_cast<int32_t>(item / p.kv_heads), 0);
      if (found.sequence < 0) break;
      Piece piece;
      piece.sequence = found.sequence;
      piece.kv_head = static_cast<int32_t>(item % p.kv_heads);
      piece.plan = PlanOf(p.batch, found.sequence, p.group, p.window);
      const int32_t part = found.index / row_tiles;
      piece.first_row = found.index % row_tiles * kSplitRows;
      piece.rows = piece.plan.group - piece.first_row;
      if (piece.rows > kSplitRows) piece.rows = kSplitRows;
      const int32_t newest = piece.plan.context - 1;
      const Interval seen = VisibleTiles(newest, newest, p.window);
      const Interval parts = piece.plan.Parts(p.part_tiles);
      piece.part = parts.count > 1 ? found.first_part + part : -1;
      piece.first_tile = (parts.first + part) * p.part_tiles;
      piece.end_tile = piece.first_tile + p.part_tiles;
      if (piece.first_tile < seen.first) piece.first_tile = seen.first;
      if (piece.end_tile > seen.first + seen.count) piece.end_tile = seen.first + seen.count;
      Attend(p, piece);
    }
  }

  static NIBBLE_DEVICE void LoadKeys(const Params& p, const Piece& piece, int32_t tile) {
    const uint8_t* head = Head(p, piece, tile);
    Scores::Part::Load(head, head + p.kv.key_scales, p.head_dim, Tokens(piece, tile),
                       Keys(simt::WarpIndex()), simt::Lane(), simt::kWarp);
  }
  static NIBBLE_DEVICE void LoadValues(const Params& p, const Piece& piece, int32_t tile) {
    const uint8_t* head = Head(p, piece, tile);
    Values::Part::Load(head + p.kv.value_codes, head + p.kv.value_scales, p.head_dim,
                       Tokens(piece, tile), ValuesOf(simt::WarpIndex()), simt::Lane(), simt::kWarp);
  }
  static NIBBLE_DEVICE const uint8_t* Head(const Params& p, const Piece& piece, int32_t tile) {
    return p.kv.Head(p.batch.block_table[int64_t{piece.sequence} * p.batch.max_blocks + tile],
                     piece.kv_head);
  }
  static NIBBLE_DEVICE int Tokens(const Piece& piece, int32_t tile) {
    return piece.plan.context - tile * kKvBlockTokens;
  }

  static NIBBLE_DEVICE void Attend(const Params& p, const Piece& piece) {
    const int warp = simt::WarpIndex(), warps = Warps();
    const int32_t end = piece.end_tile;
    const int32_t own = piece.first_tile + warp;
    if (own < end) LoadKeys(p, piece, own);
    simt::CommitCopies();
    if (own < end) LoadValues(p, piece, own);
    simt::CommitCopies();
    const int32_t row = simt::Lane() / 4;
    const int32_t token = p.batch.query_start[piece.sequence];
    const int32_t query = token * p.heads + piece.kv_head * p.group + piece.first_row + row;
    const typename Scores::Queries queries = {row < piece.rows ? query : -1};

    RowState run;
    if (warps == 1) {  // a part of one tile
      AttendTile(p, piece, queries, own, -1);
      const simt::Vec8 state = Result(0)[kOperands * simt::kWarp + simt::Lane()];
      const RowFold fold =
          run.Take(std::bit_cast<float>(state.word[0]), std::bit_cast<float>(state.word[1]));
      for (int operand = 0; operand < kOperands; ++operand) {
        const simt::Vec8 pair = Result(0)[operand * simt::kWarp + simt::Lane()];
        float sums[2];
        NIBBLE_UNROLL
        for (int e = 0; e < 2; ++e) sums[e] = Fold(fold, 0.0f, std::bit_cast<float>(pair.word[e]));
        Write(p, piece, token, operand, sums, run);
      }
      return;
    }
    float sums[kOwn][2] = {};
    NIBBLE_ROLL
    for (int32_t round = piece.first_tile; round < end; round += warps) {
      const int32_t tile = round + warp;
      if (tile < end) AttendTile(p, piece, queries, tile, tile + warps < end ? tile + warps : -1);
      simt::SyncThreads();
      FoldTiles(round + warps < end ? warps : end - round, run, sums);
      simt::SyncThreads();
    }
    NIBBLE_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      if (i < kOperands / warps) Write(p, piece, token, FirstOperand() + i, sums[i], run);
    }
  }

  // The warp's tile, to its result; the next one (-1: none) is asked for as soon as there is room.
  static NIBBLE_DEVICE void AttendTile(const Params& p, const Piece& piece,
                                       const typename Scores::Queries& queries, int32_t tile,
                                       int32_t next) {
    const int warp = simt::WarpIndex();
    const int32_t newest[1] = {piece.plan.context - 1};
    const int32_t first_key = tile * kKvBlockTokens;
    const bool masked = first_key + kKvBlockTokens - 1 > newest[0] ||
                        (p.window > 0 && newest[0] - first_key >= p.window);
    TileScores scores;
    simt::WaitCopies<1>();
    simt::SyncWarp();
    Scores::Score(p, queries, Keys(warp), scores);
    simt::SyncWarp();
    if (next >= 0) LoadKeys(p, piece, next);
    simt::CommitCopies();
    float largest[1], sum[1];
    Scores::Weigh(p, first_key, masked, newest, scores, largest, sum);
    simt::WaitCopies<1>();
    simt::SyncWarp();
    if (Values::kScaled && Tokens(piece, tile) < kKvBlockTokens) {
      Values::Part::ClearScales(ValuesOf(warp), Tokens(piece, tile), simt::Lane(), simt::kWarp);
      simt::SyncWarp();
    }
    simt::Vec8* result = Result(warp) + simt::Lane();
    Values::Sum(ValuesOf(warp), scores, 0, [result](int operand, const float(&sums)[4]) {
      result[operand * simt::kWarp] = {
          {std::bit_cast<uint32_t>(sums[0]), std::bit_cast<uint32_t>(sums[1])}};
    });
    result[kOperands * simt::kWarp] = {
        {std::bit_cast<uint32_t>(largest[0]), std::bit_cast<uint32_t>(sum[0])}};
    simt::SyncWarp();
    if (next >= 0) LoadValues(p, piece, next);
    simt::CommitCopies();
  }

  // The results of warps 0 .. count - 1 into the run; a warp has kOperands / Warps() operands.
  static NIBBLE_DEVICE void FoldTiles(int count, RowState& run, float (&sums)[kOwn][2]) {
    NIBBLE_ROLL
    for (int w = 0; w < count; ++w) {
      const simt::Vec8* result = Result(w);
      const simt::Vec8 state = result[kOperands * simt::kWarp + simt::Lane()];
      const RowFold fold =
          run.Take(std::bit_cast<float>(state.word[0]), std::bit_cast<float>(state.word[1]));
      result += FirstOperand() * simt::kWarp + simt::Lane();
      NIBBLE_UNROLL
      for (int i = 0; i < kOwn; ++i) {
        if (i >= kOperands / Warps()) break;
        const simt::Vec8 pair = result[i * simt::kWarp];
        NIBBLE_UNROLL
        for (int e = 0; e < 2; ++e) {
          sums[i][e] = Fold(fold, sums[i][e], std::bit_cast<float>(pair.word[e]));
        }
      }
    }
  }

  static NIBBLE_DEVICE void Write(const Params& p, const Piece& piece, int64_t token, int operand,
                                  const float (&sums)[2], const RowState& state) {
    const int lane = simt::Lane(), row = lane / 4;
    if (row >= piece.rows) return;
    if (piece.part >= 0) {
      auto* partial =
          reinterpret_cast<simt::Vec8*>(p.Partial(piece.part, piece.kv_head, piece.first_row)) +
          lane;
      partial[operand * 4 * piece.rows] = {
          {std::bit_cast<uint32_t>(sums[0]), std::bit_cast<uint32_t>(sums[1])}};
      if (operand == 0) {
        partial[kOperands * 4 * piece.rows] = {
            {std::bit_cast<uint32_t>(state.largest), std::bit_cast<uint32_t>(state.sum)}};
      }
      return;
    }
    const int64_t head = piece.kv_head * p.group + piece.first_row + row;
    const float inverse = 1.0f / state.sum;
    NIBBLE_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int d = Values::Dim(0, operand, lane % 4 * 2 + e);
      if (d < p.head_dim) WriteRowFloat(p.out, token, head * p.head_dim + d, sums[e] * inverse);
    }
  }
};

}  // namespace nibble
