// SPDX-License-Identifier: Apache-2.0
// From weights and a tile of values to sums of weighted values: one warp, 8 or 16 rows.
//
// Scales of values multiply the weights before these become bf16, operand A; the lows of int4 add
// sum(weight * low), columns of one more product. The sums of one operand's eight columns are
// complete before the next begin and are handed out: no tile needs registers for a whole row.
#pragma once

#include "kernels/cuda/attention_scores.h"

namespace nibble {

// kHalves: warps that share the columns of a head. kToRegisters: `take` of Sum needs constants.
template <KvCode kCode, int kDim, int kHeights, int kHalves, bool kToRegisters>
struct ValueTile {
  using Part = AttentionPart<kCode, kDim, false>;
  using Values = typename Part::Tile;
  static constexpr bool kInt4 = kCode == KvCode::kInt4;
  static constexpr bool kScaled = kCode > KvCode::kBF16;
  // Chunks (16 bytes of a row) in groups with one scale per token.
  static constexpr int kGroups = kInt4 ? kDim / kKvInt4Group : 1;
  static constexpr int kOwnGroups = kGroups > kHalves ? kGroups / kHalves : 1;
  static constexpr int kGroupChunks = Values::kChunks / kHalves / kOwnGroups;
  static constexpr int kOperands = kDim / 8 / kHalves;  // of eight columns each

  // Element `column` (of 8) of operand `operand` of a half.
  static NIBBLE_HD constexpr int Dim(int half, int operand, int column) {
    operand += half * kOperands;
    return Values::ValueDim(operand / Values::kPairs, operand % Values::kPairs, column);
  }

  // Calls take(operand, sums) for every operand of a half: sums[e] of row lane / 4 + 8 (e / 2),
  // column lane % 4 * 2 + e % 2.
  template <typename Take>
  static NIBBLE_DEVICE void Sum(const uint8_t* part, const TileScores& weights, int half,
                                const Take& take) {
    const uint8_t* scales = part + Values::kBytes;
    const int place = static_cast<int>(part - simt::Shared()) +
                      Values::ValueSwizzle::Row(simt::Afresh(simt::Lane()));
    float lows[4] = {};
    if constexpr (kInt4) SumLows(scales, weights, lows);
    if constexpr (kToRegisters) {
      NIBBLE_UNROLL
      for (int own = 0; own < kOwnGroups; ++own)
        SumGroup(scales, place, weights, lows, half, own, take);
    } else {
      NIBBLE_ROLL
      for (int own = 0; own < kOwnGroups; ++own)
        SumGroup(scales, place, weights, lows, half, own, take);
    }
  }

 private:
  template <typename Take>
  static NIBBLE_DEVICE void SumGroup(const uint8_t* scales, int place, const TileScores& weights,
                                     const float (&lows)[4], int half, int own, const Take& take) {
    const int group = kGroups == 1 ? 0 : half * kOwnGroups + own;
    uint32_t a[4][4];
    LoadOperands(scales, group, weights, a);
    float low[2] = {0.0f, 0.0f};
    if constexpr (kInt4) {
      NIBBLE_UNROLL
      for (int h = 0; h < kHeights; ++h) {
        const int from = (simt::Lane() & ~3) + group / 2;
        const float even = simt::Shuffle(lows[2 * h], from);
        const float odd = simt::Shuffle(lows[2 * h + 1], from);
        low[h] = group % 2 == 0 ? even : odd;
      }
    }
    const int first = (half * kOwnGroups + own) * kGroupChunks;
    if constexpr (kToRegisters) {
      NIBBLE_UNROLL
      for (int n = 0; n < kGroupChunks; ++n) {
        simt::SyncWarp();  // the compiler would load more ahead than it has registers for
        SumChunk(place, first + n, a, low, own * kGroupChunks + n, take);
      }
    } else {
      NIBBLE_UNROLL_4
      for (int n = 0; n < kGroupChunks; ++n) {
        SumChunk(place, first + n, a, low, own * kGroupChunks + n, take);
      }
    }
  }

  template <typename Take>
  static NIBBLE_DEVICE void SumChunk(int place, int chunk, const uint32_t (&a)[4][4],
                                     const float (&low)[2], int own, const Take& take) {
    float sums[Values::kPairs][4];
    NIBBLE_UNROLL
    for (int i = 0; i < Values::kPairs; ++i) {
      NIBBLE_UNROLL
      for (int e = 0; e < 4; ++e) sums[i][e] = 0.0f;
    }
    NIBBLE_UNROLL
    for (int half = 0; half < 2; ++half) {
      uint32_t word[4];
      simt::LoadMatrix4Transposed(word, simt::Shared() + Values::ValueSwizzle::Unit(place, chunk) +
                                            half * 32 * Values::kRowBytes);
      uint32_t pair[4][Values::kPairs];
      NIBBLE_UNROLL
      for (int m = 0; m < 4; ++m) Values::Expand(word[m], pair[m]);
      NIBBLE_UNROLL
      for (int i = 0; i < Values::kPairs; ++i) {
        NIBBLE_UNROLL
        for (int s = 0; s < 2; ++s) {
          simt::MmaBF16(sums[i], a[2 * half + s], {pair[2 * s][i], pair[2 * s + 1][i]});
        }
      }
    }
    NIBBLE_UNROLL
    for (int i = 0; i < Values::kPairs; ++i) {
      if constexpr (kInt4) {
        NIBBLE_UNROLL
        for (int e = 0; e < 2 * kHeights; ++e) sums[i][e] += low[e / 2];
      }
      take(own * Values::kPairs + i, sums[i]);
    }
  }

  // Weights of keys 16 s .. 16 s + 15 as operand a[s], times the scales of a group (-1: of none).
  static NIBBLE_DEVICE void LoadOperands(const uint8_t* scales, int group,
                                         const TileScores& weights, uint32_t (&a)[4][4]) {
    NIBBLE_UNROLL
    for (int j = 0; j < kKvBlockTokens / 8; ++j) {
      const int token = 8 * j + simt::Lane() % 4 * 2;
      float scale[2] = {1.0f, 1.0f};
      if (kScaled && group >= 0) {
        if constexpr (kInt4) {
          LoadBF16Pair(reinterpret_cast<const uint16_t*>(scales) + KvInt4ScaleIndex(group, token),
                       scale);
        } else {
          LoadF32Pair(scales + 4 * token, scale);
        }
      }
      NIBBLE_UNROLL
      for (int h = 0; h < 2; ++h) {
        a[j / 2][j % 2 * 2 + h] = h < kHeights ? simt::PackBF16x2(weights[j][2 * h] * scale[0],
                                                                  weights[j][2 * h + 1] * scale[1])
                                               : 0u;
      }
    }
  }

  // Column g of the product: sum(weight * low) of group g.
  static NIBBLE_DEVICE void SumLows(const uint8_t* scales, const TileScores& weights,
                                    float (&lows)[4]) {
    uint32_t a[4][4];
    LoadOperands(scales, -1, weights, a);
    const int group = simt::Lane() / 4;
    NIBBLE_UNROLL
    for (int s = 0; s < 4; ++s) {
      uint32_t b[2] = {0u, 0u};
      if (group < kGroups) {
        const auto* low = reinterpret_cast<const uint16_t*>(scales) +
                          KvInt4ScaleIndex(group, 16 * s + simt::Lane() % 4 * 2) + kKvBlockTokens;
        b[0] = *reinterpret_cast<const uint32_t*>(low);
        b[1] = *reinterpret_cast<const uint32_t*>(low + 8);
      }
      simt::MmaBF16(lows, a[s], b);
    }
  }
};

}  // namespace nibble
