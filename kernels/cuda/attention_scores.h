// SPDX-License-Identifier: Apache-2.0
// From queries and a tile of keys to weights: one warp, 8 or 16 rows, all 64 keys.
//
// Rows are operand A of m16n8k16 (rows 8 to 15 are zeros if kHeights is 1), keys operand B, so that
// weights lie where the next product wants its operand A. Scales of keys multiply scores; the lows
// of int4 add low * sum(q). Weights are exp2 of the score less the largest of the tile: they depend
// on nothing outside of the tile.
#pragma once

#include "kernels/cuda/attention_fold.h"
#include "kernels/cuda/attention_load.h"

namespace nibble {

// Element e of column j: row lane / 4 + 8 (e / 2), key 8 j + lane % 4 * 2 + e % 2.
using TileScores = float[kKvBlockTokens / 8][4];

// Queries are read anew for each tile, from the first-level cache: they would take a quarter of the
// registers.
template <KvCode kCode, int kDim, int kHeights>
struct ScoreTile {
  using Part = AttentionPart<kCode, kDim, true>;
  using Keys = typename Part::Tile;
  using Segment = QuerySegment<Keys, kHeights>;
  static constexpr int kColumns = kKvBlockTokens / 8;

  // Which rows of q, token * heads + head, the queries of this lane's rows are; -1: there is no
  // such row.
  using Queries = int32_t[kHeights];

  // q k, not yet multiplied by the scale of attention.
  static NIBBLE_DEVICE void Score(const AttentionParams& p, const Queries& queries,
                                  const uint8_t* part, TileScores& scores) {
    NIBBLE_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      NIBBLE_UNROLL
      for (int e = 0; e < 4; ++e) scores[j][e] = 0.0f;
    }
    const int lane = simt::Afresh(simt::Lane());
    const int place = static_cast<int>(part - simt::Shared()) + Keys::KeySwizzle::Row(lane / 4) +
                      lane % 4 * Keys::kLoadBytes;
    NIBBLE_ROLL
    for (int c = 0; c < Keys::kSegments; ++c) ScoreSegment(p, queries, part, place, c, scores);
    if constexpr (kCode == KvCode::kInt8 || kCode == KvCode::kFp8) {
      NIBBLE_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        float scale[2];
        LoadF32Pair(part + Keys::kBytes + 4 * (8 * j + simt::Lane() % 4 * 2), scale);
        NIBBLE_UNROLL
        for (int e = 0; e < 2 * kHeights; ++e) scores[j][e] *= scale[e % 2];
      }
    }
  }

  // Scores become weights; the largest score and the sum of weights of each row. With `masked`, a
  // row sees keys up to `newest` only, a window of them.
  static NIBBLE_DEVICE void Weigh(const AttentionParams& p, int32_t first_key, bool masked,
                                  const int32_t (&newest)[kHeights], TileScores& scores,
                                  float (&largest)[kHeights], float (&sum)[kHeights]) {
    constexpr float kLog2E = 1.4426950408889634f;
    float factor = p.scale * kLog2E;
    if (p.softcap > 0.0f) {
      NIBBLE_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        NIBBLE_UNROLL
        for (int e = 0; e < 2 * kHeights; ++e) {
          scores[j][e] = p.softcap * simt::Tanh(scores[j][e] * p.scale / p.softcap);
        }
      }
      factor = kLog2E;
    }
    if (masked) {
      const int32_t window = p.window > 0 ? p.window : INT32_MAX;
      NIBBLE_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        NIBBLE_UNROLL
        for (int e = 0; e < 2 * kHeights; ++e) {
          const int32_t key = first_key + 8 * j + simt::Lane() % 4 * 2 + e % 2;
          const int32_t age = newest[e / 2] - key;
          if (age < 0 || age >= window) scores[j][e] = -INFINITY;
        }
      }
    }
    NIBBLE_UNROLL
    for (int h = 0; h < kHeights; ++h) {
      float top = -INFINITY;
      NIBBLE_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        NIBBLE_UNROLL
        for (int e = 2 * h; e < 2 * h + 2; ++e) {
          if (scores[j][e] > top) top = scores[j][e];
        }
      }
      NIBBLE_UNROLL
      for (int mask = 1; mask <= 2; mask *= 2) {
        const float other = simt::ShuffleXor(top, mask);
        if (other > top) top = other;
      }
      largest[h] = top * factor;
      const float base = top == -INFINITY ? 0.0f : largest[h];
      float part[2] = {0.0f, 0.0f};
      NIBBLE_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        NIBBLE_UNROLL
        for (int e = 0; e < 2; ++e) {
          float& x = scores[j][2 * h + e];
          x = simt::Exp2(std::fma(x, factor, -base));
          part[e] += x;
        }
      }
      sum[h] = part[0] + part[1];
      NIBBLE_UNROLL
      for (int mask = 1; mask <= 2; mask *= 2) sum[h] += simt::ShuffleXor(sum[h], mask);
    }
  }

 private:
  // scores += q k over segment c.
  static NIBBLE_DEVICE void ScoreSegment(const AttentionParams& p, const Queries& queries,
                                         const uint8_t* part, int place, int c,
                                         TileScores& scores) {
    uint32_t q[Keys::kSteps][4];
    Segment segment;
    NIBBLE_UNROLL
    for (int h = 0; h < kHeights; ++h) segment.Load(p.q, queries[h], p.head_dim, c, h);
    NIBBLE_UNROLL
    for (int s = 0; s < Keys::kSteps; ++s) segment.Operand(s, q[s]);
    float query_sums[4] = {};  // by a product with ones
    if constexpr (kCode == KvCode::kInt4) {
      NIBBLE_UNROLL
      for (int s = 0; s < Keys::kSteps; ++s) {
        simt::MmaBF16(query_sums, q[s], {0x3f803f80u, 0x3f803f80u});
      }
    }
    NIBBLE_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      uint32_t word[Keys::kWords];
      LoadWords(simt::Shared() + Keys::KeySwizzle::Unit(place, c) + 8 * j * Keys::kRowBytes, word);
      uint32_t pair[Keys::kWords][Keys::kPairs];
      NIBBLE_UNROLL
      for (int w = 0; w < Keys::kWords; ++w) Keys::Expand(word[w], pair[w]);
      float dot[4] = {};
      NIBBLE_UNROLL
      for (int s = 0; s < Keys::kSteps; ++s) {
        const uint32_t k[2] = {pair[2 * s / Keys::kPairs][2 * s % Keys::kPairs],
                               pair[(2 * s + 1) / Keys::kPairs][(2 * s + 1) % Keys::kPairs]};
        if constexpr (kCode == KvCode::kInt4) {
          simt::MmaBF16(dot, q[s], k);
        } else {
          simt::MmaBF16(scores[j], q[s], k);
        }
      }
      if constexpr (kCode == KvCode::kInt4) {
        const auto* plane = reinterpret_cast<const uint16_t*>(part + Keys::kBytes) +
                            KvInt4ScaleIndex(c, 8 * j + simt::Lane() % 4 * 2);
        float scale[2], low[2];
        LoadBF16Pair(plane, scale);
        LoadBF16Pair(plane + kKvBlockTokens, low);
        NIBBLE_UNROLL
        for (int e = 0; e < 2 * kHeights; ++e) {
          scores[j][e] =
              std::fma(dot[e], scale[e % 2], std::fma(low[e % 2], query_sums[e & 2], scores[j][e]));
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
};

}  // namespace nibble
