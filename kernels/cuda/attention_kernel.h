// SPDX-License-Identifier: Apache-2.0
// Attention of rows of queries over pages of any KV format: the kernel of attention.cu.
//
// Tiling: a block of four or eight warps takes a tile of rows (attention_plan.h) and walks tiles of
// 64 keys, which cp.async brings into a ring of stages in shared memory, codes as they are stored.
// Sixteen rows are the first operand of m16n8k16 instructions, codes expanded in registers
// (kv_tile.h) the second; softmax is online with exp2 (Dao 2023, arXiv 2307.08691). kParts warps
// share sixteen rows:
//
//   kParts = 1  prefill: a warp has 16 rows of its own, all keys and all of the head; weights go
//               from the scores' registers to the operand's without a move.
//   kParts = 2  prefill of heads of 128, whose sums would not fit the registers of one warp: two
//               warps have 16 rows, each half of the keys and half of the head.
//   kParts = 4  decode: each warp scores a quarter of the keys and sums a quarter of the head; the
//               rows' maxima and weights are exchanged through shared memory.
//
// The operations on a row and their order are the same for all, so that outputs are equal to the
// bit. Scales are algebra around the products: of K they multiply scores, of V the weights; the
// lows of int4 add sum(q) * low to scores and sum(weight * low) to outputs. That sum and the sum
// of weights are columns of one more product.
//
// Limit: decode, bytes of the cache, read once per 16 query heads of a kv head; prefill, the rate
// of mma instructions.
#pragma once

#include <bit>
#include <cmath>

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/kv_tile.h"
#include "kernels/cuda/row_writer.h"
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
  bool split;       // which sequences this launch serves
  float* partials;  // split sequences of more than one run leave their runs here
  ActSet out;       // plain floats
};

// Piece `index` of sequence `sequence`; `before` pieces belong to sequences before it.
struct AttentionPiece {
  int32_t sequence = -1;  // -1: there are no more
  int32_t index = 0;
  int32_t before = 0;
};

// The warp finds the sequence of the piece; every lane gets the answer.
NIBBLE_DEVICE AttentionPiece FindPiece(const AttentionParams& p, int32_t piece, int32_t row_tile) {
  int32_t before = 0;
  for (int32_t base = 0; base < p.batch.sequences; base += simt::kWarp) {
    const int32_t sequence = base + simt::Lane();
    const int32_t pieces =
        sequence < p.batch.sequences
            ? PlanOf(p.batch, sequence, p.group, p.window).Pieces(p.split, row_tile)
            : 0;
    int32_t through = pieces;  // of this and earlier lanes
    for (int step = 1; step < simt::kWarp; step *= 2) {
      const bool inside = simt::Lane() >= step;
      const int32_t other = simt::Shuffle(through, inside ? simt::Lane() - step : simt::Lane());
      if (inside) through += other;
    }
    const uint32_t reached = simt::Ballot(piece < before + through);
    if (reached != 0) {
      const int lane = simt::LowestBit(reached);
      before += simt::Shuffle(through - pieces, lane);
      return {base + lane, piece - before, before};
    }
    before += simt::Shuffle(through, simt::kWarp - 1);
  }
  return {};
}

// The fold over runs: the state {largest, sum, o} of a row takes in a run. `keep` and `add` are the
// factors of what was there and of the run.
struct RowFold {
  float keep;
  float add;
};
NIBBLE_DEVICE RowFold FoldRun(float& largest, float& sum, float run_largest, float run_sum) {
  const float now = run_largest > largest ? run_largest : largest;
  const float base = now == -INFINITY ? 0.0f : now;
  const RowFold fold{simt::Exp2(largest - base), simt::Exp2(run_largest - base)};
  largest = now;
  sum = std::fma(sum, fold.keep, run_sum * fold.add);
  return fold;
}
NIBBLE_DEVICE float Fold(const RowFold& fold, float before, float run) {
  return std::fma(before, fold.keep, run * fold.add);
}

template <KvCode kKeyCode, KvCode kValueCode, int kDim, int kParts>
struct AttentionKernel {
  using Params = AttentionParams;
  using Keys = KvTile<kKeyCode, kDim>;
  using Values = KvTile<kValueCode, kDim>;
  static constexpr int kThreads = kParts == 2 ? 256 : 128;
  static constexpr int kMinBlocks = kDim == 256 || kParts == 2 ? 1 : kParts == 1 ? 2 : 3;
  static constexpr int kWarps = kThreads / simt::kWarp;
  static constexpr int kRowTiles = kWarps / kParts;
  static constexpr int kRows = 16 * kRowTiles;

  // Key columns of 8 in a tile, and those of a warp.
  static constexpr int kColumns = kKvBlockTokens / 8 / kParts;
  // Chunks of values that a warp sums, in groups with one scale per token.
  static constexpr int kOwnChunks = (Values::kChunks + kParts - 1) / kParts;
  static constexpr int kValueGroups = kValueCode == KvCode::kInt4 ? kDim / kKvInt4Group : 1;
  static constexpr int kGroupChunks = Values::kChunks / kValueGroups;
  static constexpr int kOwnGroupChunks = kOwnChunks < kGroupChunks ? kOwnChunks : kGroupChunks;
  static constexpr int kOwnGroups = kOwnChunks / kOwnGroupChunks;
  // Operands of weights: as they are, and multiplied by the scales of each group.
  static constexpr bool kScaledValues = kValueCode > KvCode::kBF16;
  static constexpr int kWeightKinds = kScaledValues ? 1 + kValueGroups : 1;
  // Columns of the extra product: the lows of the groups, and ones.
  static constexpr int kOnes = 4;

  // ---- Shared memory
  static constexpr int kKeyScaleBytes = kKvBlockTokens * KvScaleBytes(kKeyCode, kDim);
  static constexpr int kValueScaleBytes = kKvBlockTokens * KvScaleBytes(kValueCode, kDim);
  static constexpr int kStageBytes =
      Keys::kBytes + Values::kBytes + kKeyScaleBytes + kValueScaleBytes;
  static constexpr int kStages = kParts > 1 && kStageBytes <= 20 * 1024 ? 3 : 2;
  static constexpr int kQueryStride = 2 * kDim + 16;  // bytes; the 16 keep rows in unlike banks
  static constexpr int kQueryBytes = kRows * kQueryStride;
  static constexpr int kWeightStride = 2 * kKvBlockTokens + 16;
  static constexpr int kWeightBytes = 16 * kWeightStride;  // of 16 rows, one kind
  static constexpr int kExchangeBytes = kParts > 1 ? kRowTiles*(kWeightKinds* kWeightBytes +
                                                                kParts * 16 * 4)
                                                   : 0;
  static constexpr int kSums = kOwnChunks * Values::kPairs * 4;  // registers of a thread
  static constexpr int kOutputFloats =                           // what was folded; then the output
      kSums * kThreads > kRows* kDim ? kSums* kThreads : kRows* kDim;
  static constexpr size_t kSharedBytes =
      static_cast<size_t>(kStages * kStageBytes + kQueryBytes + kExchangeBytes + 4 * kOutputFloats);

  // What a block needs to know of its piece.
  struct Piece {
    SequencePlan plan;
    int32_t sequence, kv_head;
    int32_t first_row;
    int32_t first_tile, last_tile;
    int64_t partial_run;  // -1: the output is written at once
  };

  // The running state of a thread: rows g and g + 8 of its warp's sixteen.
  struct State {
    float o[kOwnChunks][Values::kPairs][4];
    float extra[4];
    float largest[2];
    NIBBLE_DEVICE void Clear() {
      NIBBLE_UNROLL
      for (int n = 0; n < kOwnChunks; ++n) {
        NIBBLE_UNROLL
        for (int i = 0; i < Values::kPairs; ++i) {
          NIBBLE_UNROLL
          for (int e = 0; e < 4; ++e) o[n][i][e] = 0.0f;
        }
      }
      NIBBLE_UNROLL
      for (int e = 0; e < 4; ++e) extra[e] = 0.0f;
      largest[0] = largest[1] = -INFINITY;
    }
    // Rows g by factor[0], g + 8 by factor[1].
    NIBBLE_DEVICE void Scale(const float (&factor)[2]) {
      NIBBLE_UNROLL
      for (int n = 0; n < kOwnChunks; ++n) {
        NIBBLE_UNROLL
        for (int i = 0; i < Values::kPairs; ++i) {
          NIBBLE_UNROLL
          for (int e = 0; e < 4; ++e) o[n][i][e] *= factor[e / 2];
        }
      }
      NIBBLE_UNROLL
      for (int e = 0; e < 4; ++e) extra[e] *= factor[e / 2];
    }
  };

  static NIBBLE_DEVICE int RowTile() { return simt::WarpIndex() / kParts; }
  static NIBBLE_DEVICE int Part() { return simt::WarpIndex() % kParts; }
  static NIBBLE_DEVICE uint8_t* Stage(int stage) { return simt::Shared() + stage * kStageBytes; }
  static NIBBLE_DEVICE uint8_t* Queries() { return Stage(kStages); }
  static NIBBLE_DEVICE uint8_t* Weights(int kind) {
    return Queries() + kQueryBytes + (RowTile() * kWeightKinds + kind) * kWeightBytes;
  }
  static NIBBLE_DEVICE float* Maxima() {  // (kParts, 16)
    return reinterpret_cast<float*>(Queries() + kQueryBytes +
                                    kRowTiles * kWeightKinds * kWeightBytes) +
           RowTile() * kParts * 16;
  }
  static NIBBLE_DEVICE float* Folded() {
    return reinterpret_cast<float*>(Queries() + kQueryBytes + kExchangeBytes) + simt::Thread();
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    simt::WaitForPreviousKernel();
    const int32_t split_tiles = (p.group + kRows - 1) / kRows;
    for (int64_t item = simt::BlockX();; item += simt::GridX()) {
      const AttentionPiece found = FindPiece(p, static_cast<int32_t>(item / p.kv_heads), kRows);
      if (found.sequence < 0) break;
      Piece piece;
      piece.sequence = found.sequence;
      piece.kv_head = static_cast<int32_t>(item % p.kv_heads);
      piece.plan = PlanOf(p.batch, found.sequence, p.group, p.window);
      piece.partial_run = -1;
      if (p.split) {
        const Interval runs = piece.plan.Runs();
        const int32_t run = found.index / split_tiles;
        piece.first_row = found.index % split_tiles * kRows;
        SetTiles(p, piece);
        const int32_t begin = (runs.first + run) * kRunTiles;
        if (piece.first_tile < begin) piece.first_tile = begin;
        if (piece.last_tile > begin + kRunTiles - 1) piece.last_tile = begin + kRunTiles - 1;
        if (runs.count > 1) piece.partial_run = found.before / split_tiles + run;
      } else {
        // The rows that see most come first.
        const int32_t tiles = (piece.plan.rows() + kRows - 1) / kRows;
        piece.first_row = (tiles - 1 - found.index) * kRows;
        SetTiles(p, piece);
      }
      Attend(p, piece);
      simt::SyncThreads();
    }
    simt::StartNextKernel();
  }

  static NIBBLE_DEVICE void SetTiles(const Params& p, Piece& piece) {
    const int32_t end = piece.first_row + kRows;
    const int32_t last_row = (end < piece.plan.rows() ? end : piece.plan.rows()) - 1;
    const Interval tiles =
        VisibleTiles(piece.plan.Position(piece.first_row), piece.plan.Position(last_row), p.window);
    piece.first_tile = tiles.first;
    piece.last_tile = tiles.first + tiles.count - 1;
  }

  // ---- Loading

  // Rows of queries as bf16, elements in the order of the keys' fragments; zeros around.
  static NIBBLE_DEVICE void LoadQueries(const Params& p, const Piece& piece) {
    const int64_t first_token = p.batch.query_start[piece.sequence];
    for (int i = simt::Thread(); i < kRows * kDim; i += kThreads) {
      const int row = i / kDim, d = i % kDim;
      const int32_t packed = piece.first_row + row;
      float x = 0.0f;
      if (packed < piece.plan.rows() && d < p.head_dim) {
        const int64_t token = first_token + packed / p.group;
        const int64_t head = piece.kv_head * p.group + packed % p.group;
        x = LoadFloat(p.q.data, p.q.dtype, (token * p.heads + head) * p.head_dim + d);
      }
      reinterpret_cast<uint16_t*>(Queries() + row * kQueryStride)[Keys::KeyPosition(d)] =
          F32ToBF16(x);
    }
  }

  // Starts the copy of codes (64 rows of `row_bytes`) to offset(token, byte); rows from `tokens` on
  // and the bytes behind a row become zeros.
  template <KvCode kCode, typename Offset>
  static NIBBLE_DEVICE void LoadCodes(const uint8_t* from, int64_t row_bytes, int tokens,
                                      uint8_t* to, Offset offset) {
    constexpr int kRowBytes = KvTile<kCode, kDim>::kRowBytes;
    if constexpr (kCode == KvCode::kF32) {
      for (int i = simt::Thread(); i < kKvBlockTokens * kRowBytes / 16; i += kThreads) {
        const int token = i / (kRowBytes / 16), byte = i % (kRowBytes / 16) * 16;
        simt::Vec16 packed{};
        if (token < tokens && 2 * byte < row_bytes) {
          const auto* x = reinterpret_cast<const simt::Vec16*>(from + token * row_bytes + 2 * byte);
          const simt::Vec16 a = x[0], b = x[1];
          const auto pack = [](uint32_t low, uint32_t high) {
            return simt::PackBF16x2(std::bit_cast<float>(low), std::bit_cast<float>(high));
          };
          packed = {{pack(a.word[0], a.word[1]), pack(a.word[2], a.word[3]),
                     pack(b.word[0], b.word[1]), pack(b.word[2], b.word[3])}};
        }
        *reinterpret_cast<simt::Vec16*>(to + offset(token, byte)) = packed;
      }
    } else if (row_bytes % 16 == 0) {
      for (int i = simt::Thread(); i < kKvBlockTokens * kRowBytes / 16; i += kThreads) {
        const int token = i / (kRowBytes / 16), byte = i % (kRowBytes / 16) * 16;
        simt::CopyAsync16(to + offset(token, byte), from + token * row_bytes + byte,
                          token < tokens && byte < row_bytes);
      }
    } else {
      for (int i = simt::Thread(); i < kKvBlockTokens * kRowBytes / 4; i += kThreads) {
        const int token = i / (kRowBytes / 4), byte = i % (kRowBytes / 4) * 4;
        simt::CopyAsync4(to + offset(token, byte), from + token * row_bytes + byte,
                         token < tokens && byte < row_bytes);
      }
    }
  }

  // Groups that the head does not have get zeros.
  static NIBBLE_DEVICE void LoadScales(const uint8_t* from, int64_t bytes, int shared_bytes,
                                       uint8_t* to) {
    for (int i = 16 * simt::Thread(); i < shared_bytes; i += 16 * kThreads) {
      simt::CopyAsync16(to + i, from + i, i < bytes);
    }
  }

  static NIBBLE_DEVICE void LoadTile(const Params& p, const Piece& piece, int32_t tile,
                                     uint8_t* stage) {
    const int32_t block = p.batch.block_table[int64_t{piece.sequence} * p.batch.max_blocks + tile];
    const uint8_t* part = p.kv.Head(block, piece.kv_head);
    const int tokens = piece.plan.context - tile * kKvBlockTokens;
    LoadCodes<kKeyCode>(part, KvCodeBytes(kKeyCode, p.head_dim), tokens, stage,
                        [](int token, int byte) { return Keys::KeyOffset(token, byte); });
    stage += Keys::kBytes;
    LoadCodes<kValueCode>(part + p.kv.value_codes, KvCodeBytes(kValueCode, p.head_dim), tokens,
                          stage,
                          [](int token, int byte) { return Values::ValueOffset(token, byte); });
    stage += Values::kBytes;
    LoadScales(part + p.kv.key_scales, kKvBlockTokens * KvScaleBytes(kKeyCode, p.head_dim),
               kKeyScaleBytes, stage);
    stage += kKeyScaleBytes;
    LoadScales(part + p.kv.value_scales, kKvBlockTokens * KvScaleBytes(kValueCode, p.head_dim),
               kValueScaleBytes, stage);
  }

  // ---- The walk over the keys

  static NIBBLE_DEVICE void Attend(const Params& p, const Piece& piece) {
    LoadQueries(p, piece);
    NIBBLE_UNROLL
    for (int ahead = 0; ahead < kStages - 1; ++ahead) {
      const int32_t tile = piece.first_tile + ahead;
      if (tile <= piece.last_tile) LoadTile(p, piece, tile, Stage(ahead));
      simt::CommitCopies();
    }
    int32_t position[2], oldest[2];
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int32_t row = piece.first_row + RowTile() * 16 + simt::Lane() / 4 + 8 * h;
      position[h] = row < piece.plan.rows() ? piece.plan.Position(row) : -1;
      oldest[h] = p.window > 0 ? position[h] - p.window + 1 : 0;
    }
    float query_sums[Keys::kSegments][2] = {};
    if constexpr (kKeyCode == KvCode::kInt4) {
      simt::SyncThreads();
      SumQueries(query_sums);
    }
    State state;
    state.Clear();
    float folded_largest[2] = {-INFINITY, -INFINITY};
    float folded_sum[2] = {0.0f, 0.0f};
    bool folded = false;
    int slot = 0;
    for (int32_t tile = piece.first_tile; tile <= piece.last_tile; ++tile) {
      simt::WaitCopies<kStages - 2>();
      simt::SyncThreads();
      const int32_t ahead = tile + kStages - 1;
      if (ahead <= piece.last_tile) {
        LoadTile(p, piece, ahead, Stage(slot == 0 ? kStages - 1 : slot - 1));
      }
      simt::CommitCopies();
      const uint8_t* stage = Stage(slot);
      slot = slot + 1 == kStages ? 0 : slot + 1;

      float weights[kColumns][4];
      Score(stage, query_sums, weights);
      Weigh(p, stage + Keys::kBytes + Values::kBytes, tile, position, oldest, state, weights);
      AddValues(stage + Keys::kBytes, tile, piece.plan.context, weights, state);

      const bool last = tile == piece.last_tile;
      if (!last && (tile + 1) % kRunTiles != 0) continue;
      float sum[2];
      FinishRun(state, sum);
      FoldState(folded, last, state, sum, folded_largest, folded_sum);
      if (last) Write(p, piece, state, folded_largest, folded_sum);
      folded = true;
      state.Clear();
    }
  }

  static NIBBLE_DEVICE const uint8_t* QueryRow(int step) {
    const int lane = simt::Lane();
    return Queries() + (RowTile() * 16 + lane % 16) * kQueryStride +
           2 * (step * 16 + lane / 16 * 8);
  }

  // sum(q) of every segment, by a product with ones.
  static NIBBLE_DEVICE void SumQueries(float (&sums)[Keys::kSegments][2]) {
    NIBBLE_UNROLL
    for (int c = 0; c < Keys::kSegments; ++c) {
      float dot[4] = {};
      NIBBLE_UNROLL
      for (int s = 0; s < Keys::kSteps; ++s) {
        uint32_t q[4];
        simt::LoadMatrix4(q, QueryRow(c * Keys::kSteps + s));
        simt::MmaBF16(dot, q, {0x3f803f80u, 0x3f803f80u});
      }
      sums[c][0] = dot[0];
      sums[c][1] = dot[2];
    }
  }

  // q k of the warp's rows and keys: column j holds keys 8 j + 2 (lane % 4) and the next.
  static NIBBLE_DEVICE void Score(const uint8_t* stage,
                                  const float (&query_sums)[Keys::kSegments][2],
                                  float (&scores)[kColumns][4]) {
    NIBBLE_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      NIBBLE_UNROLL
      for (int e = 0; e < 4; ++e) scores[j][e] = 0.0f;
    }
    const int first = Part() * kColumns * 8;
    // As an offset that changes from stage to stage: of what does not change, the compiler would
    // keep every sum in a register of its own.
    const int place = static_cast<int>(stage - simt::Shared()) +
                      Keys::KeySwizzle::Row(simt::Lane() / 4) + first * Keys::kRowBytes +
                      simt::Lane() % 4 * Keys::kLoadBytes;
    NIBBLE_UNROLL
    for (int c = 0; c < Keys::kSegments; ++c) {
      uint32_t q[Keys::kSteps][4];
      NIBBLE_UNROLL
      for (int s = 0; s < Keys::kSteps; ++s) {
        simt::LoadMatrix4(q[s], QueryRow(c * Keys::kSteps + s));
      }
      NIBBLE_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        uint32_t word[Keys::kWords];
        LoadWords(simt::Shared() + Keys::KeySwizzle::Unit(place, c) + 8 * j * Keys::kRowBytes,
                  word);
        uint32_t pair[Keys::kWords][Keys::kPairs];
        NIBBLE_UNROLL
        for (int w = 0; w < Keys::kWords; ++w) Keys::Expand(word[w], pair[w]);
        float dot[4] = {};
        NIBBLE_UNROLL
        for (int s = 0; s < Keys::kSteps; ++s) {
          const uint32_t k[2] = {pair[2 * s / Keys::kPairs][2 * s % Keys::kPairs],
                                 pair[(2 * s + 1) / Keys::kPairs][(2 * s + 1) % Keys::kPairs]};
          if constexpr (kKeyCode == KvCode::kInt4) {
            simt::MmaBF16(dot, q[s], k);
          } else {
            simt::MmaBF16(scores[j], q[s], k);
          }
        }
        if constexpr (kKeyCode == KvCode::kInt4) {
          const auto* plane =
              reinterpret_cast<const uint16_t*>(stage + Keys::kBytes + Values::kBytes) +
              KvInt4ScaleIndex(c, first + 8 * j + simt::Lane() % 4 * 2);
          float scale[2], low[2];
          LoadBF16Pair(plane, scale);
          LoadBF16Pair(plane + kKvBlockTokens, low);
          NIBBLE_UNROLL
          for (int e = 0; e < 4; ++e) {
            scores[j][e] = std::fma(dot[e], scale[e % 2],
                                    std::fma(low[e % 2], query_sums[c][e / 2], scores[j][e]));
          }
        }
      }
    }
  }

  template <int kWords>
  static NIBBLE_DEVICE void LoadWords(const uint8_t* from, uint32_t (&word)[kWords]) {
    if constexpr (kWords == 4) {
      const auto loaded = *reinterpret_cast<const simt::Vec16*>(from);
      NIBBLE_UNROLL
      for (int w = 0; w < 4; ++w) word[w] = loaded.word[w];
    } else {
      const auto loaded = *reinterpret_cast<const simt::Vec8*>(from);
      word[0] = loaded.word[0];
      word[1] = loaded.word[1];
    }
  }
  static NIBBLE_DEVICE void LoadBF16Pair(const uint16_t* from, float (&pair)[2]) {
    const uint32_t word = *reinterpret_cast<const uint32_t*>(from);
    pair[0] = std::bit_cast<float>(word << 16);
    pair[1] = std::bit_cast<float>(word & 0xffff0000u);
  }
  static NIBBLE_DEVICE void LoadF32Pair(const uint8_t* from, float (&pair)[2]) {
    const auto word = *reinterpret_cast<const simt::Vec8*>(from);
    pair[0] = std::bit_cast<float>(word.word[0]);
    pair[1] = std::bit_cast<float>(word.word[1]);
  }

  // Scores to weights exp2(score - largest), the state to the new largest score. With kParts > 1
  // the weights go to shared memory, as operands.
  static NIBBLE_DEVICE void Weigh(const Params& p, const uint8_t* scales, int32_t tile,
                                  const int32_t (&position)[2], const int32_t (&oldest)[2],
                                  State& state, float (&weights)[kColumns][4]) {
    constexpr float kLog2E = 1.4426950408889634f;
    const int in_tile = Part() * kColumns * 8 + simt::Lane() % 4 * 2;
    const int32_t first_key = tile * kKvBlockTokens + in_tile;
    float largest[2] = {-INFINITY, -INFINITY};
    NIBBLE_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      float key_scale[2] = {1.0f, 1.0f};
      if constexpr (kKeyCode == KvCode::kInt8 || kKeyCode == KvCode::kFp8) {
        LoadF32Pair(scales + 4 * (in_tile + 8 * j), key_scale);
      }
      NIBBLE_UNROLL
      for (int e = 0; e < 4; ++e) {
        float score = weights[j][e] * key_scale[e % 2] * p.scale;
        if (p.softcap > 0.0f) score = p.softcap * simt::Tanh(score / p.softcap);
        score *= kLog2E;
        const int32_t key = first_key + 8 * j + e % 2;
        if (key > position[e / 2] || key < oldest[e / 2]) score = -INFINITY;
        weights[j][e] = score;
        if (score > largest[e / 2]) largest[e / 2] = score;
      }
    }
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) {
      NIBBLE_UNROLL
      for (int mask = 1; mask <= 2; mask *= 2) {
        const float other = simt::ShuffleXor(largest[h], mask);
        if (other > largest[h]) largest[h] = other;
      }
    }
    if constexpr (kParts > 1) {
      float* maxima = Maxima() + simt::Lane() / 4;
      if (simt::Lane() % 4 == 0) {
        maxima[Part() * 16] = largest[0];
        maxima[Part() * 16 + 8] = largest[1];
      }
      simt::SyncThreads();
      NIBBLE_UNROLL
      for (int part = 0; part < kParts; ++part) {
        NIBBLE_UNROLL
        for (int h = 0; h < 2; ++h) {
          const float other = maxima[part * 16 + 8 * h];
          if (other > largest[h]) largest[h] = other;
        }
      }
    }
    float shrink[2], base[2];
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) {
      if (state.largest[h] > largest[h]) largest[h] = state.largest[h];
      base[h] = largest[h] == -INFINITY ? 0.0f : largest[h];
      shrink[h] = simt::Exp2(state.largest[h] - base[h]);
      state.largest[h] = largest[h];
    }
    state.Scale(shrink);
    NIBBLE_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      NIBBLE_UNROLL
      for (int e = 0; e < 4; ++e) weights[j][e] = simt::Exp2(weights[j][e] - base[e / 2]);
    }
    if constexpr (kParts > 1) {
      NIBBLE_UNROLL
      for (int kind = 0; kind < kWeightKinds; ++kind) {
        uint8_t* to = Weights(kind) + simt::Lane() / 4 * kWeightStride + 2 * in_tile;
        NIBBLE_UNROLL
        for (int j = 0; j < kColumns; ++j) {
          uint32_t pair[2];
          PackWeights(kind, scales + kKeyScaleBytes, in_tile + 8 * j, weights[j], pair);
          *reinterpret_cast<uint32_t*>(to + 16 * j) = pair[0];
          *reinterpret_cast<uint32_t*>(to + 16 * j + 8 * kWeightStride) = pair[1];
        }
      }
      simt::SyncThreads();
    }
  }

  // Weights of keys `token` and the next, of rows g and g + 8, as bf16; kind 0 as they are, kind
  // 1 + i times the scales of group i. A weight of zero stays zero whatever the scale.
  static NIBBLE_DEVICE void PackWeights(int kind, const uint8_t* value_scales, int token,
                                        const float (&weight)[4], uint32_t (&pair)[2]) {
    float scale[2] = {1.0f, 1.0f};
    if (kind > 0) {
      if constexpr (kValueCode == KvCode::kInt4) {
        LoadBF16Pair(
            reinterpret_cast<const uint16_t*>(value_scales) + KvInt4ScaleIndex(kind - 1, token),
            scale);
      } else {
        LoadF32Pair(value_scales + 4 * token, scale);
      }
    }
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) {
      const float a = weight[2 * h], b = weight[2 * h + 1];
      pair[h] = simt::PackBF16x2(kind == 0 || a == 0.0f ? a : a * scale[0],
                                 kind == 0 || b == 0.0f ? b : b * scale[1]);
    }
  }

  // The first operand of the products with keys 32 half .. 32 half + 31.
  static NIBBLE_DEVICE void LoadWeights(int kind, int half, const uint8_t* value_scales,
                                        const float (&weights)[kColumns][4], uint32_t (&a)[2][4]) {
    NIBBLE_UNROLL
    for (int s = 0; s < 2; ++s) {
      const int step = 2 * half + s;
      if constexpr (kParts > 1) {
        const int lane = simt::Lane();
        simt::LoadMatrix4(
            a[s], Weights(kind) + lane % 16 * kWeightStride + 2 * (step * 16 + lane / 16 * 8));
      } else {
        NIBBLE_UNROLL
        for (int eight = 0; eight < 2; ++eight) {
          uint32_t pair[2];
          const int j = 2 * step + eight;
          PackWeights(kind, value_scales, 8 * j + simt::Lane() % 4 * 2, weights[j], pair);
          a[s][2 * eight] = pair[0];
          a[s][2 * eight + 1] = pair[1];
        }
      }
    }
  }

  // o += weights v of one tile.
  static NIBBLE_DEVICE void AddValues(const uint8_t* values, int32_t tile, int32_t context,
                                      const float (&weights)[kColumns][4], State& state) {
    const uint8_t* scales = values + Values::kBytes + kKeyScaleBytes;
    const int place =
        static_cast<int>(values - simt::Shared()) + Values::ValueSwizzle::Row(simt::Lane());
    NIBBLE_UNROLL
    for (int half = 0; half < 2; ++half) {
      uint32_t a[2][4];
      LoadWeights(0, half, scales, weights, a);
      NIBBLE_UNROLL
      for (int s = 0; s < 2; ++s) {
        const int token = half * 32 + s * 16 + simt::Lane() % 4 * 2;
        const uint32_t extra[2] = {ExtraColumn(scales, tile, context, token),
                                   ExtraColumn(scales, tile, context, token + 8)};
        simt::MmaBF16(state.extra, a[s], extra);
      }
      NIBBLE_UNROLL
      for (int own = 0; own < kOwnGroups; ++own) {
        const int first = Part() * kOwnChunks + own * kOwnGroupChunks;
        if (first >= Values::kChunks) break;  // the whole warp: there are fewer chunks than warps
        if constexpr (kScaledValues) {
          const int group = kParts == 1 ? own : first / kGroupChunks;
          LoadWeights(1 + group, half, scales, weights, a);
        }
        NIBBLE_UNROLL
        for (int n = 0; n < kOwnGroupChunks; ++n) {
          uint32_t word[4];
          simt::LoadMatrix4Transposed(word, simt::Shared() +
                                                Values::ValueSwizzle::Unit(place, first + n) +
                                                half * 32 * Values::kRowBytes);
          uint32_t pair[4][Values::kPairs];
          NIBBLE_UNROLL
          for (int m = 0; m < 4; ++m) Values::Expand(word[m], pair[m]);
          NIBBLE_UNROLL
          for (int i = 0; i < Values::kPairs; ++i) {
            NIBBLE_UNROLL
            for (int s = 0; s < 2; ++s) {
              simt::MmaBF16(state.o[own * kOwnGroupChunks + n][i], a[s],
                            {pair[2 * s][i], pair[2 * s + 1][i]});
            }
          }
        }
      }
    }
  }

  // Column lane / 4 of the extra product's second operand, tokens `token` and the next.
  static NIBBLE_DEVICE uint32_t ExtraColumn(const uint8_t* scales, int32_t tile, int32_t context,
                                            int token) {
    const int column = simt::Lane() / 4;
    if (column == kOnes) return 0x3f803f80u;
    if constexpr (kValueCode == KvCode::kInt4) {
      if (column < kValueGroups) {
        const uint32_t low =
            *reinterpret_cast<const uint32_t*>(reinterpret_cast<const uint16_t*>(scales) +
                                               KvInt4ScaleIndex(column, token) + kKvBlockTokens);
        // What lies behind the context was never written and may be a NaN.
        const int32_t left = context - tile * kKvBlockTokens - token;
        return left >= 2 ? low : left == 1 ? low & 0xffffu : 0u;
      }
    }
    return 0u;
  }

  // Completes o of a run and hands out the sums of weights.
  static NIBBLE_DEVICE void FinishRun(State& state, float (&sum)[2]) {
    const int row = simt::Lane() & ~3;
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) sum[h] = simt::Shuffle(state.extra[2 * h], row + kOnes / 2);
    if constexpr (kValueCode == KvCode::kInt4) {
      NIBBLE_UNROLL
      for (int own = 0; own < kOwnGroups; ++own) {
        const int group = kParts == 1 ? own : (Part() * kOwnChunks) / kGroupChunks + own;
        NIBBLE_UNROLL
        for (int h = 0; h < 2; ++h) {
          const float even = simt::Shuffle(state.extra[2 * h], row + group / 2);
          const float odd = simt::Shuffle(state.extra[2 * h + 1], row + group / 2);
          const float low = group % 2 == 0 ? even : odd;
          NIBBLE_UNROLL
          for (int n = 0; n < kOwnGroupChunks; ++n) {
            NIBBLE_UNROLL
            for (int i = 0; i < Values::kPairs; ++i) {
              state.o[own * kOwnGroupChunks + n][i][2 * h] += low;
              state.o[own * kOwnGroupChunks + n][i][2 * h + 1] += low;
            }
          }
        }
      }
    }
  }

  // Folds the run into those before it; after the last one the state holds the result.
  static NIBBLE_DEVICE void FoldState(bool folded, bool last, State& state, const float (&sum)[2],
                                      float (&largest)[2], float (&total)[2]) {
    RowFold fold[2];
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) {
      if (folded) {
        fold[h] = FoldRun(largest[h], total[h], state.largest[h], sum[h]);
      } else {
        largest[h] = state.largest[h];
        total[h] = sum[h];
      }
    }
    if (last && !folded) return;
    float* kept = Folded();
    NIBBLE_UNROLL
    for (int n = 0; n < kOwnChunks; ++n) {
      NIBBLE_UNROLL
      for (int i = 0; i < Values::kPairs; ++i) {
        NIBBLE_UNROLL
        for (int e = 0; e < 4; ++e) {
          float& o = state.o[n][i][e];
          float& before = kept[((n * Values::kPairs + i) * 4 + e) * kThreads];
          if (folded) o = Fold(fold[e / 2], before, o);
          if (!last) before = o;
        }
      }
    }
  }

  // ---- Writing

  static NIBBLE_DEVICE int OutputIndex(int row, int d) {  // the term keeps rows in unlike banks
    return row * kDim + (d ^ row % 4 * 8);
  }

  // The output, or the run's part of it, through shared memory, so that rows are written in order.
  static NIBBLE_DEVICE void Write(const Params& p, const Piece& piece, const State& state,
                                  const float (&largest)[2], const float (&sum)[2]) {
    auto* output = reinterpret_cast<float*>(Queries() + kQueryBytes + kExchangeBytes);
    const bool partial = piece.partial_run >= 0;
    float factor[2];
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) factor[h] = partial ? 1.0f : 1.0f / sum[h];
    simt::SyncThreads();  // the memory held what was folded
    NIBBLE_UNROLL
    for (int n = 0; n < kOwnChunks; ++n) {
      if (Part() * kOwnChunks + n >= Values::kChunks) break;
      NIBBLE_UNROLL
      for (int i = 0; i < Values::kPairs; ++i) {
        NIBBLE_UNROLL
        for (int e = 0; e < 4; ++e) {
          const int row = RowTile() * 16 + simt::Lane() / 4 + e / 2 * 8;
          const int d = Values::ValueDim(Part() * kOwnChunks + n, i, simt::Lane() % 4 * 2 + e % 2);
          output[OutputIndex(row, d)] = state.o[n][i][e] * factor[e / 2];
        }
      }
    }
    simt::SyncThreads();
    const int64_t first_token = p.batch.query_start[piece.sequence];
    const int32_t left = piece.plan.rows() - piece.first_row;
    for (int i = simt::Thread(); i < (left < kRows ? left : kRows) * p.head_dim; i += kThreads) {
      const int row = i / p.head_dim, d = i % p.head_dim;
      const int32_t packed = piece.first_row + row;
      const int64_t head = piece.kv_head * p.group + packed % p.group;
      const float o = output[OutputIndex(row, d)];
      if (partial) {
        p.partials[(piece.partial_run * p.heads + head) * PartialFloats(p.head_dim) + d] = o;
      } else {
        WriteRowFloat(p.out, first_token + packed / p.group, head * p.head_dim + d, o);
      }
    }
    if (!partial || Part() != 0 || simt::Lane() % 4 != 0) return;
    NIBBLE_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int row = RowTile() * 16 + simt::Lane() / 4 + 8 * h;
      if (row >= left) continue;
      const int64_t head = piece.kv_head * p.group + piece.first_row + row;
      float* to = p.partials + (piece.partial_run * p.heads + head) * PartialFloats(p.head_dim);
      to[p.head_dim] = largest[h];
      to[p.head_dim + 1] = sum[h];
    }
  }
};

}  // namespace nibble
