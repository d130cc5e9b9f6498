// SPDX-License-Identifier: Apache-2.0
// How queries come into registers and tiles of keys and values into shared memory.
#pragma once

#include <bit>

#include "kernels/codec.h"
#include "kernels/cuda/attention_pieces.h"
#include "kernels/cuda/kv_tile.h"

namespace nibble {

// ---- Queries

// Eight f32 as bf16.
NIBBLE_DEVICE simt::Vec16 PackEight(const void* from) {
  const auto* x = static_cast<const simt::Vec16*>(from);
  simt::Vec16 eight;
  NIBBLE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const simt::Vec16 four = x[i / 2];
    eight.word[i] = simt::PackBF16x2(std::bit_cast<float>(four.word[i % 2 * 2]),
                                     std::bit_cast<float>(four.word[i % 2 * 2 + 1]));
  }
  return eight;
}

// Elements at .. at + 7 of q as bf16.
NIBBLE_DEVICE simt::Vec16 LoadEightQueries(const Floats& q, int64_t at) {
  if (q.dtype == DType::kBF16) {
    return *reinterpret_cast<const simt::Vec16*>(static_cast<const uint16_t*>(q.data) + at);
  }
  return PackEight(static_cast<const float*>(q.data) + at);
}

// Rows lane / 4 and, if kHeights is 2, lane / 4 + 8 of one segment of a tile of keys, as operand A
// of m16n8k16 in the order of the summed axis that KvTile::KeyPosition names.
template <class Keys, int kHeights>
struct QuerySegment {
  uint32_t pair[2 * Keys::kSteps][kHeights];

  // Row `query` of q, of head_dim elements; -1: zeros.
  NIBBLE_DEVICE void Load(const Floats& q, int32_t query, int32_t head_dim, int segment,
                          int height) {
    constexpr int kLaneDim = Keys::kSegmentDim / 4;
    const int first = segment * Keys::kSegmentDim + simt::Lane() % 4 * kLaneDim;
    uint32_t word[kLaneDim / 2];
    NIBBLE_UNROLL
    for (int v = 0; v < kLaneDim / 8; ++v) {
      simt::Vec16 eight{};
      if (query >= 0 && first + 8 * v < head_dim) {
        eight = LoadEightQueries(q, int64_t{query} * head_dim + first + 8 * v);
      }
      NIBBLE_UNROLL
      for (int i = 0; i < 4; ++i) word[4 * v + i] = eight.word[i];
    }
    // Pair i of a word of 2 kPairs codes is elements i and i + kPairs.
    NIBBLE_UNROLL
    for (int j = 0; j < 2 * Keys::kSteps; ++j) {
      const int low = j / Keys::kPairs * 2 * Keys::kPairs + j % Keys::kPairs;
      const int high = low + Keys::kPairs;
      pair[j][height] = Keys::kPairs == 1 ? word[j]
                                          : simt::PickBytes(word[low / 2], word[high / 2],
                                                            low % 2 == 0 ? 0x5410u : 0x7632u);
    }
  }
  NIBBLE_DEVICE void Operand(int step, uint32_t (&a)[4]) const {
    NIBBLE_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = i % 2 < kHeights ? pair[2 * step + i / 2][i % 2] : 0u;
  }
};

// ---- Keys and values

// The keys or the values of a tile in shared memory: codes, then scales. `thread` of `threads` take
// part in an operation.
template <KvCode kCode, int kDim, bool kOfKeys>
struct AttentionPart {
  using Tile = KvTile<kCode, kDim>;
  static constexpr int kScaleBytes = kKvBlockTokens * KvScaleBytes(kCode, kDim);
  static constexpr int kBytes = Tile::kBytes + kScaleBytes;

  static NIBBLE_DEVICE int Offset(int token, int byte) {
    return kOfKeys ? Tile::KeyOffset(token, byte) : Tile::ValueOffset(token, byte);
  }

  // Starts the copies; codes of tokens from `tokens` on and what lies behind a row become zeros,
  // and so do the scales of groups that the head does not have.
  static NIBBLE_DEVICE void Load(const uint8_t* codes, const uint8_t* scales, int32_t head_dim,
                                 int tokens, uint8_t* to, int thread, int threads) {
    const auto row_bytes = static_cast<int>(KvCodeBytes(kCode, head_dim));
    // A thread keeps to its place in a row: the number of threads is a multiple of 32.
    constexpr int kUnits = Tile::kRowBytes / 16;
    static_assert(simt::kWarp % kUnits == 0);
    const int byte = thread % kUnits * 16, step = threads / kUnits;
    if constexpr (kCode == KvCode::kF32) {
      NIBBLE_ROLL
      for (int token = thread / kUnits; token < kKvBlockTokens; token += step) {
        simt::Vec16 packed{};
        if (token < tokens && 2 * byte < row_bytes) {
          packed = PackEight(codes + token * row_bytes + 2 * byte);
        }
        *reinterpret_cast<simt::Vec16*>(to + Offset(token, byte)) = packed;
      }
    } else if (tokens >= kKvBlockTokens && row_bytes == Tile::kRowBytes) {
      const uint8_t* from = codes + 16 * thread;
      NIBBLE_UNROLL_4
      for (int token = thread / kUnits; token < kKvBlockTokens; token += step) {
        simt::CopyAsync16Stream(to + Offset(token, byte), from, true);
        from += 16 * threads;
      }
    } else if (row_bytes % 16 == 0) {
      NIBBLE_ROLL
      for (int token = thread / kUnits; token < kKvBlockTokens; token += step) {
        simt::CopyAsync16(to + Offset(token, byte), codes + token * row_bytes + byte,
                          token < tokens && byte < row_bytes);
      }
    } else {
      NIBBLE_ROLL
      for (int i = thread; i < kKvBlockTokens * Tile::kRowBytes / 4; i += threads) {
        const int token = i / (Tile::kRowBytes / 4), word = i % (Tile::kRowBytes / 4) * 4;
        simt::CopyAsync4(to + Offset(token, word), codes + token * row_bytes + word,
                         token < tokens && word < row_bytes);
      }
    }
    const int scale_bytes = kKvBlockTokens * static_cast<int>(KvScaleBytes(kCode, head_dim));
    for (int i = 16 * thread; i < kScaleBytes; i += 16 * threads) {
      simt::CopyAsync16(to + Tile::kBytes + i, scales + i, i < scale_bytes);
    }
  }

  // What lies behind the context was never written and may be a NaN, which a weight of zero would
  // not take away: zeros instead.
  static NIBBLE_DEVICE void ClearScales(uint8_t* part, int tokens, int thread, int threads) {
    auto* scales = part + Tile::kBytes;
    if constexpr (kCode == KvCode::kInt4) {
      for (int i = thread; i < kScaleBytes / 2; i += threads) {
        if (i % kKvBlockTokens >= tokens) reinterpret_cast<uint16_t*>(scales)[i] = 0;
      }
    } else {
      for (int i = thread; i < kScaleBytes / 4; i += threads) {
        if (i >= tokens) reinterpret_cast<float*>(scales)[i] = 0.0f;
      }
    }
  }
};

// ---- Scales in shared memory, of two tokens that follow each other

NIBBLE_DEVICE void LoadBF16Pair(const uint16_t* from, float (&pair)[2]) {
  const uint32_t word = *reinterpret_cast<const uint32_t*>(from);
  pair[0] = std::bit_cast<float>(word << 16);
  pair[1] = std::bit_cast<float>(word & 0xffff0000u);
}
NIBBLE_DEVICE void LoadF32Pair(const uint8_t* from, float (&pair)[2]) {
  const auto word = *reinterpret_cast<const simt::Vec8*>(from);
  pair[0] = std::bit_cast<float>(word.word[0]);
  pair[1] = std::bit_cast<float>(word.word[1]);
}

}  // namespace nibble
