// SPDX-License-Identifier: Apache-2.0
// How int4 and int8 weights lie in device memory for the kernels that multiply bf16 activations:
// a permutation of the stored codes, such that a lane's 16 bytes are the codes of its own matrix
// fragments and a tile is one run of bytes.
//
// Output features are cut into tiles of 128, input features into tiles of 128; both are padded, and
// what is padded decodes to 0. Tile (n, k) is record n * k_tiles + k:
//   codes   (32 input features, slab of 32 output features, 1 (int4) or 2 (int8), lane) of 16
//   bytes.
//           The fragments are operand A of an m16n8k16 product (simt.h): output features are its
//           rows, tokens its columns. A lane has two blocks of 16 output features, of two steps of
//           16 input features each.
//   scales  (group in the tile, LaneOrder) bf16, unless there is one per output feature
//   zeros   (group in the tile, LaneOrder) unsigned 4 bits; asymmetric formats only
// After the records: one bf16 scale per padded output feature, if the format has no groups.
// The weights that share an input lie one after another along the output tiles.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/codec.h"
#include "kernels/cuda/simt.h"
#include "kernels/scheme.h"

namespace nibble {

inline constexpr int kPackedTile = 128;  // output features and input features of a tile
inline constexpr int kPackedSlab = 32;   // output features of a warp: two blocks of 16

struct PackedFormat {
  int bits = 4;             // 4 | 8
  int group = 128;          // 32 | 64 | 128 input features per scale; 0 = all of them
  bool asymmetric = false;  // int4 in groups only

  friend constexpr bool operator==(const PackedFormat&, const PackedFormat&) = default;
};

// Whether the layout holds weights of this scheme.
constexpr bool HasPackedFormat(const Scheme& s) {
  const bool groups = s.group == 32 || s.group == 64 || s.group == 128;
  return s.container == Container::kPacked && s.activation == Activation::kFloat &&
         s.scale == DType::kBF16 &&
         ((s.code == DType::kI4 && groups && (s.symmetric() || s.zero == DType::kI4)) ||
          (s.code == DType::kI8 && (groups || s.group == kWholeRow) && s.symmetric()));
}
constexpr PackedFormat PackedFormatOf(const Scheme& s) {
  return {s.bits(), s.group == kWholeRow ? 0 : static_cast<int>(s.group), !s.symmetric()};
}

constexpr int PackedTiles(int64_t features) {
  return static_cast<int>((features + kPackedTile - 1) / kPackedTile);
}

// Sizes and offsets; bytes. Everything is a multiple of 16.
struct PackedLayout {
  PackedFormat format;
  int n_tiles = 0;  // of all weights that share the input
  int k_tiles = 0;

  constexpr int GroupsPerTile() const { return format.group == 0 ? 0 : kPackedTile / format.group; }
  constexpr int CodeBytes() const { return kPackedTile * kPackedTile * format.bits / 8; }
  constexpr int ScaleBytes() const { return GroupsPerTile() * kPackedTile * 2; }
  constexpr int ZeroBytes() const {
    return format.asymmetric ? GroupsPerTile() * kPackedTile / 2 : 0;
  }
  constexpr int RecordBytes() const { return CodeBytes() + ScaleBytes() + ZeroBytes(); }
  constexpr int64_t ChannelScales() const {  // offset
    return int64_t{n_tiles} * k_tiles * RecordBytes();
  }
  constexpr int64_t Bytes() const {
    return ChannelScales() + (format.group == 0 ? int64_t{n_tiles} * kPackedTile * 2 : 0);
  }
};

struct PackedWeight {
  PackedLayout layout;
  uint8_t* data = nullptr;  // (layout.Bytes()) aligned to 16
};

// ---- Index maps inside a record; n and k are in 0..127

// Where a code lies: 32-bit word of the record, and its lowest bit there.
struct PackedCode {
  int word;
  int shift;
};
NIBBLE_HD constexpr PackedCode PackedCodeOf(int bits, int n, int k) {
  const int slab = n / 32, block = n / 16 % 2, span = k / 32, step = k / 16 % 2;
  const int lane = n % 8 * 4 + k % 8 / 2;
  const int fragment = n / 8 % 2 + k / 8 % 2 * 2;  // register of the fragment
  const int pair = (block * 2 + step) * 4 + fragment;
  const int word = pair * bits / 16;  // of the lane's words
  const int vector = (span * 4 + slab) * (bits / 4) + word / 4;
  return {(vector * 32 + lane) * 4 + word % 4, pair * bits % 16 + k % 2 * 16};
}

// And back: the weight whose code is number `code` (lowest bits first) of a word.
struct PackedPlace {
  int n, k;
};
NIBBLE_HD constexpr PackedPlace PackedPlaceOf(int bits, int word, int code) {
  const int vector = word / 128, lane = word / 4 % 32;
  const int slab = vector / (bits / 4) % 4, span = vector / bits;
  const int odd = code * bits / 16;
  const int of_lane = vector % (bits / 4) * 4 + word % 4;
  const int pair = (of_lane * 16 + code * bits % 16) / bits;
  const int block = pair / 8, step = pair / 4 % 2, fragment = pair % 4;
  return {slab * 32 + block * 16 + fragment % 2 * 8 + lane / 4,
          span * 32 + step * 16 + fragment / 2 * 8 + lane % 4 * 2 + odd};
}

// Position of output feature n among the scales or zeros of a group: the four features of a lane's
// fragments in a slab (rows g and g + 8 of both blocks, g = lane / 4) are neighbours.
NIBBLE_HD constexpr int LaneOrder(int n) {
  return (n / kPackedSlab * 8 + n % 8) * 4 + n % 32 / 16 * 2 + n % 16 / 8;
}
// That of the first of them.
NIBBLE_HD constexpr int LaneScales(int slab, int lane) { return (slab * 8 + lane / 4) * 4; }
NIBBLE_HD constexpr int FromLaneOrder(int i) {
  return i / 32 * kPackedSlab + i % 4 / 2 * 16 + i % 2 * 8 + i / 4 % 8;
}

// ---- Single weights: for embeddings and tests

// The value of weight (n, k), n counted over the padded output features of all weights; the same
// bits as ReadWeight of what was packed.
NIBBLE_HD inline float ReadPackedWeight(const PackedWeight& w, int64_t n, int64_t k) {
  const PackedLayout& layout = w.layout;
  const int row = static_cast<int>(n % kPackedTile), col = static_cast<int>(k % kPackedTile);
  const uint8_t* record =
      w.data + (n / kPackedTile * layout.k_tiles + k / kPackedTile) * layout.RecordBytes();
  const int bits = layout.format.bits;
  const PackedCode at = PackedCodeOf(bits, row, col);
  const auto word = reinterpret_cast<const uint32_t*>(record)[at.word];
  const int code = static_cast<int>((word >> at.shift) & ((1u << bits) - 1u));
  if (layout.format.group == 0) {
    const auto* scales = reinterpret_cast<const uint16_t*>(w.data + layout.ChannelScales());
    return DecodeInt(code, BF16ToF32(scales[n]), 1 << (bits - 1));
  }
  const int i = col / layout.format.group * kPackedTile + LaneOrder(row);
  const uint8_t* scales = record + layout.CodeBytes();
  const uint8_t* zeros = scales + layout.ScaleBytes();
  const int zero = layout.format.asymmetric ? (zeros[i / 2] >> (i % 2 * 4)) & 15 : 1 << (bits - 1);
  return DecodeInt(code, BF16ToF32(reinterpret_cast<const uint16_t*>(scales)[i]), zero);
}

// ---- Fragments

// Two bf16 that a code 0 of int4 becomes before the zero point is subtracted: 128 + code is exact,
// because a bf16 in [128, 256) counts in ones.
inline constexpr uint32_t kBF16Of128 = 0x43004300u;

// The subtrahend for an unsigned zero point of int4, in both halves.
NIBBLE_DEVICE uint32_t FragmentZero(uint32_t zero) { return kBF16Of128 | zero | zero << 16; }

// Number i of four unsigned zero points of 4 bits each, lowest first, which both halves hold.
NIBBLE_DEVICE uint32_t FragmentZeroOf(uint32_t zeros, int i) {
  return simt::MaskOr(zeros >> (4 * i), 0x000f000fu, kBF16Of128);
}

// The A fragment (simt.h) of one step of 16 input features, as whole numbers in bf16 (exact).
// int4: one word, 4 bits at 4 r and 16 + 4 r are register r; zero[r % 2] is its subtrahend.
NIBBLE_DEVICE void Int4Fragment(uint32_t word, const uint32_t (&zero)[2], uint32_t (&a)[4]) {
  NIBBLE_UNROLL for (int r = 0; r < 4; ++r) {
    a[r] = simt::SubBF16x2(simt::MaskOr(word >> (4 * r), 0x000f000fu, kBF16Of128), zero[r % 2]);
  }
}
// int8: two words of two registers each, code + 128 = 16 h + l. 16 (128 + h) - 2304 = 16 h - 256 is
// exact, and so is that plus 128 + l, the code.
NIBBLE_DEVICE void Int8Fragment(uint32_t word0, uint32_t word1, uint32_t (&a)[4]) {
  constexpr uint32_t k16 = 0x41804180u, kMinus2304 = 0xc510c510u;
  NIBBLE_UNROLL for (int r = 0; r < 4; ++r) {
    const uint32_t codes = (r < 2 ? word0 : word1) >> (r % 2 * 8);
    const uint32_t low = simt::MaskOr(codes, 0x000f000fu, kBF16Of128);
    const uint32_t high = simt::MaskOr(codes >> 4, 0x000f000fu, kBF16Of128);
    a[r] = simt::AddBF16x2(simt::FmaBF16x2(high, k16, kMinus2304), low);
  }
}

}  // namespace nibble
