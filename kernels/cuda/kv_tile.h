// SPDX-License-Identifier: Apache-2.0
// A tile of 64 keys or values in shared memory, and how its codes become operands of matrix
// instructions.
//
// Codes keep their format in shared memory (f32 becomes bf16 on the way in). Registers are filled
// so that one 32-bit word of codes expands to whole registers of bf16 pairs, by integer arithmetic
// that is exact; scales are left to attention. A word holds 2 kPairs codes, and pair i is codes i
// and i + kPairs of it:
//
//   keys    A lane reads its part of a row, kLoadBytes long; four lanes read a segment together.
//           Pairs 2s and 2s + 1 of a lane are its elements of step s of the segment, 16 along the
//           summed axis. So the axis is permuted; queries are stored in the same order
//           (KeyPosition).
//   values  LoadMatrix4Transposed takes units of 16 bits, 2 kPairs / 2 codes of one token, and puts
//           the units of two tokens into a register: pair i is then element i of the unit, of both
//           tokens. A chunk is 16 bytes of a row, that is kPairs operands of 8 elements.
//
// Both arrays are swizzled so that neither access has a bank conflict.
#pragma once

#include "kernels/cuda/simt.h"
#include "kernels/ops.h"

namespace nibble {

// Bits of a code as it lies in shared memory.
constexpr int TileBits(KvCode code) { return code == KvCode::kF32 ? 16 : KvCodeBits(code); }

// Rows of kUnits units of kUnitBytes, both powers of two. Unit u of a row lies where u ^ term(row)
// would be without a swizzle, so that rows that follow each other and are read at the same unit
// meet different banks. The term depends on row % 8 and changes nothing above 128 bytes.
template <int kUnits, int kUnitBytes>
struct Swizzle {
  static constexpr int kPeriod = 128 / kUnitBytes;
  static constexpr int kSwapped = kUnits < kPeriod ? kUnits : kPeriod;
  static constexpr int kRowBytes = kUnits * kUnitBytes;
  // The place of unit 0 of a row; that of another, from it.
  static NIBBLE_HD constexpr int Row(int row) {
    const int term = row % kPeriod / (kPeriod / kSwapped);
    return row * kRowBytes + term * kUnitBytes;
  }
  static NIBBLE_HD constexpr int Unit(int row_place, int unit) {
    return (row_place ^ (unit % kSwapped * kUnitBytes)) + unit / kSwapped * kSwapped * kUnitBytes;
  }
};

template <KvCode kCode, int kDim>  // kDim: 64, 128 or 256
struct KvTile {
  static constexpr int kBits = TileBits(kCode);
  static constexpr int kPairs = 16 / kBits;
  static constexpr int kRowBytes = kDim * kBits / 8;
  static constexpr int kBytes = kKvBlockTokens * kRowBytes;

  // ---- Keys. A segment of int4 is one group of scales.
  static constexpr int kLoadBytes = kBits == 4 ? 8 : 16;
  static constexpr int kWords = kLoadBytes / 4;
  static constexpr int kSegmentBytes = 4 * kLoadBytes;
  static constexpr int kSegments = kRowBytes / kSegmentBytes;
  static constexpr int kSegmentDim = kDim / kSegments;
  static constexpr int kSteps = kSegmentDim / 16;  // of a segment
  using KeySwizzle = Swizzle<kSegments, kSegmentBytes>;
  static NIBBLE_HD constexpr int KeyOffset(int token, int byte) {
    return KeySwizzle::Unit(KeySwizzle::Row(token), byte / kSegmentBytes) + byte % kSegmentBytes;
  }
  // Where element d of a query stands on the summed axis: 16 per step, in the order of
  // MmaBF16's fragments.
  static NIBBLE_HD constexpr int KeyPosition(int d) {
    constexpr int kLaneDim = kSegmentDim / 4;
    const int lane = d % kSegmentDim / kLaneDim;
    const int word = d % kLaneDim / (2 * kPairs);
    const int code = d % (2 * kPairs);
    const int pair = word * kPairs + code % kPairs;
    const int step = d / kSegmentDim * kSteps + pair / 2;
    return step * 16 + pair % 2 * 8 + lane * 2 + code / kPairs;
  }

  // ---- Values
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kChunkDim = kDim / kChunks;
  using ValueSwizzle = Swizzle<kChunks, 16>;
  static NIBBLE_HD constexpr int ValueOffset(int token, int byte) {
    return ValueSwizzle::Unit(ValueSwizzle::Row(token), byte / 16) + byte % 16;
  }
  // The element in column `column` of operand `pair` of a chunk.
  static NIBBLE_HD constexpr int ValueDim(int chunk, int pair, int column) {
    return chunk * kChunkDim + column * kPairs + pair;
  }

  // ---- Both
  static NIBBLE_DEVICE void Expand(uint32_t word, uint32_t (&pairs)[kPairs]) {
    if constexpr (kBits == 16) {
      pairs[0] = word;
    } else if constexpr (kCode == KvCode::kInt8) {
      // 0x43vv is 128 + v for v below 128; bit 7 of v is the lowest of the exponent: 0x4380 is 256.
      NIBBLE_UNROLL
      for (int i = 0; i < 2; ++i) {
        const uint32_t spread = simt::PickBytes(word, 0x43434343u, i == 0 ? 0x4240u : 0x4341u);
        pairs[i] = simt::SubBF16x2(spread & 0xff7fff7fu, spread & 0xff80ff80u);
      }
    } else if constexpr (kCode == KvCode::kFp8) {
      // Exponent and mantissa keep their bits; the exponents' biases differ by 120. A NaN code,
      // which no quantizer writes, reads as 480.
      NIBBLE_UNROLL
      for (int i = 0; i < 2; ++i) {
        const uint32_t spread = simt::PickBytes(word, 0u, i == 0 ? 0x2404u : 0x3414u);
        const uint32_t small = (spread & 0x80008000u) | ((spread & 0x7f007f00u) >> 4);
        pairs[i] = simt::MulBF16x2(small, 0x7b807b80u);  // 2^120
      }
    } else {
      static_assert(kCode == KvCode::kInt4);
      NIBBLE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const uint32_t spread = ((word >> (4 * i)) & 0x000f000fu) | 0x43004300u;  // 128 + v
        pairs[i] = simt::SubBF16x2(spread, 0x43004300u);
      }
    }
  }
};

}  // namespace nibble
