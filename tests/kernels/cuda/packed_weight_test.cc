// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/packed_weight.h"

#include <gtest/gtest.h>

#include <array>
#include <set>

#include "kernels/cuda/pack_weight.h"
#include "tests/kernels/cuda/packed_group.h"
#include "tests/support/shapes.h"

namespace nibble::testing {
namespace {

TEST(PackedLayoutTest, EveryCodeOfATileHasAPlaceOfItsOwnAndIsFoundThere) {
  for (const int bits : {4, 8}) {
    std::set<std::pair<int, int>> places;
    for (int n = 0; n < kPackedTile; ++n) {
      for (int k = 0; k < kPackedTile; ++k) {
        const PackedCode at = PackedCodeOf(bits, n, k);
        EXPECT_LT(at.word, kPackedTile * kPackedTile * bits / 32);
        EXPECT_EQ(at.shift % bits, 0);
        EXPECT_TRUE(places.insert({at.word, at.shift}).second);
        const PackedPlace back = PackedPlaceOf(bits, at.word, at.shift / bits);
        EXPECT_EQ(back.n, n);
        EXPECT_EQ(back.k, k);
      }
    }
  }
  std::set<int> order;
  for (int n = 0; n < kPackedTile; ++n) {
    order.insert(LaneOrder(n));
    EXPECT_EQ(FromLaneOrder(LaneOrder(n)), n);
    if (n % kPackedSlab < 8) {
      for (int t = 0; t < 4; ++t) {
        EXPECT_EQ(LaneScales(n / kPackedSlab, n % kPackedSlab * 4 + t), LaneOrder(n));
      }
    }
  }
  EXPECT_EQ(*order.begin(), 0);
  EXPECT_EQ(*order.rbegin(), kPackedTile - 1);
}

TEST(PackedLayoutTest, StreamsFourAndAnEighthBitsForInt4InGroupsOf128) {
  const PackedLayout layout{{4, 128, false}, 32, 32};
  EXPECT_EQ(layout.Bytes() * 8, int64_t{4096} * 4096 * 33 / 8);
  const PackedLayout asymmetric{{4, 128, true}, 32, 32};
  EXPECT_EQ(asymmetric.Bytes() * 8, int64_t{4096} * 4096 * 133 / 32);
  const PackedLayout channel{{8, 0, false}, 32, 32};
  EXPECT_EQ(channel.Bytes(), int64_t{4096} * 4096 + 4096 * 2);
}

// A lane's fragment must be operand A of the m16n8k16 product: rows are output features.
TEST(PackedLayoutTest, FragmentsAreWhatTheMatrixInstructionWants) {
  for (const int bits : {4, 8}) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int r = 0; r < 4; ++r) {
        for (int e = 0; e < 2; ++e) {
          const int n = lane / 4 + 8 * (r % 2), k = 2 * (lane % 4) + 8 * (r / 2) + e;
          const PackedCode at = PackedCodeOf(bits, n, k);
          EXPECT_EQ(at.word / 4, lane);
          EXPECT_EQ(at.word % 4, bits == 4 ? 0 : r / 2);
          EXPECT_EQ(at.shift, (bits == 4 ? 4 * r : 8 * (r % 2)) + 16 * e);
          // The next 16 input features follow, then the next 16 output features: in the same 16
          // bytes (int4) or in those of the next vector (int8).
          EXPECT_EQ(PackedCodeOf(bits, n, k + 16).word, at.word + bits / 4);
          EXPECT_EQ(PackedCodeOf(bits, n + 16, k).word, at.word + (bits == 4 ? 2 : 128));
          EXPECT_EQ(PackedCodeOf(bits, n + 32, k).word, at.word + 32 * bits);
          EXPECT_EQ(PackedCodeOf(bits, n, k + 32).word, at.word + 128 * bits);
        }
      }
    }
  }
}

TEST(PackedFragmentTest, EveryCodeAndZeroPointOfInt4IsExact) {
  for (uint32_t code = 0; code < 16; ++code) {
    for (uint32_t zero = 0; zero < 16; ++zero) {
      const uint32_t zeros[2] = {FragmentZero(zero), FragmentZero(15 - zero)};
      for (int i = 0; i < 4; ++i) {
        const uint32_t both =
            0x10001u * (zero << (4 * i) | (0xffffu & ~(15u << (4 * i)) & 0x5a3cu));
        ASSERT_EQ(FragmentZeroOf(both, i), FragmentZero(zero));
      }
      for (int place = 0; place < 8; ++place) {
        uint32_t a[4];
        Int4Fragment(code << (4 * place), zeros, a);
        for (int p = 0; p < 8; ++p) {
          const int r = p % 4;
          const auto half = static_cast<uint16_t>(a[r] >> (16 * (p / 4)));
          const int expected = (p == place ? static_cast<int>(code) : 0) -
                               static_cast<int>(r % 2 == 0 ? zero : 15 - zero);
          ASSERT_EQ(BF16ToF32(half), static_cast<float>(expected)) << code << " " << zero;
        }
      }
    }
  }
}

TEST(PackedFragmentTest, EveryCodeOfInt8IsExact) {
  for (uint32_t code = 0; code < 256; ++code) {
    for (int place = 0; place < 4; ++place) {
      for (const bool second : {false, true}) {
        uint32_t a[4];
        const uint32_t word = code << (8 * place);
        Int8Fragment(second ? 0 : word, second ? word : 0, a);
        for (int r = 0; r < 4; ++r) {
          for (int e = 0; e < 2; ++e) {
            const bool here = r == 2 * second + place % 2 && e == place / 2;
            ASSERT_EQ(BF16ToF32(static_cast<uint16_t>(a[r] >> (16 * e))),
                      static_cast<float>((here ? static_cast<int>(code) : 0) - 128));
          }
        }
      }
    }
  }
}

TEST(PackWeightTest, WhatIsPackedReadsBackAndTheRestIsZero) {
  for (const Scheme* scheme : PackedSchemes()) {
    for (const LinearShape& shape : kLinearShapes) {
      SCOPED_TRACE(::testing::Message() << scheme->name << " " << shape.out << " x " << shape.in);
      const RandomWeight weight(*scheme, shape.out, shape.in, 5), other(*scheme, 3, shape.in, 6);
      const PackedGroup group({&other, &weight});
      const std::vector<uint8_t> bytes = group.Bytes();
      PackedWeight packed = group.weight();
      packed.data = const_cast<uint8_t*>(bytes.data());
      const int64_t cols = int64_t{packed.layout.k_tiles} * kPackedTile;
      for (int64_t n = 0; n < int64_t{packed.layout.n_tiles} * kPackedTile; ++n) {
        const RandomWeight& part = n < kPackedTile ? other : weight;
        const int64_t row = n < kPackedTile ? n : n - kPackedTile;
        for (int64_t k = 0; k < cols; ++k) {
          const bool inside = row < part.view().rows && k < shape.in;
          ASSERT_EQ(ReadPackedWeight(packed, n, k), inside ? ReadWeight(part.view(), row, k) : 0.0f)
              << n << ", " << k;
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::testing
