// SPDX-License-Identifier: Apache-2.0
#include "kernels/hadamard.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/activations.h"
#include "tests/support/near.h"

namespace nibble::testing {
namespace {

// Element (r, c) of H, from its definition.
int Element(const HadamardShape& shape, int64_t r, int64_t c) {
  const auto negative = HadamardBase(shape.base);
  const int b = (negative[static_cast<size_t>(r / shape.power)] >> (c / shape.power) & 1u) != 0;
  const int s = std::popcount(static_cast<uint64_t>(r % shape.power) &
                              static_cast<uint64_t>(c % shape.power));
  return (b + s) % 2 == 0 ? 1 : -1;
}

TEST(HadamardTest, LengthsThatHaveATransform) {
  EXPECT_EQ(HadamardShapeOf(1).base, 1);
  EXPECT_EQ(HadamardShapeOf(4096).power, 4096);
  EXPECT_EQ(HadamardShapeOf(11008 / 43 * 28).base, 28);
  EXPECT_EQ(HadamardShapeOf(14336).base, 28);
  EXPECT_EQ(HadamardShapeOf(14336).power, 512);
  EXPECT_EQ(HadamardShapeOf(5120).base, 20);
  EXPECT_EQ(HadamardShapeOf(3072).base, 12);
  for (const int64_t n :
       {int64_t{-4}, int64_t{0}, int64_t{3}, int64_t{36}, int64_t{11008}, 2 * kMaxHadamardDim}) {
    EXPECT_EQ(HadamardShapeOf(n).base, 0) << n;
  }
}

TEST(HadamardTest, RowsOfTheSmallMatricesAreOrthogonal) {
  for (const int base : {12, 20, 28}) {
    const auto negative = HadamardBase(base);
    for (int a = 0; a < base; ++a) {
      EXPECT_EQ(negative[static_cast<size_t>(a)] >> base, 0u);
      for (int b = 0; b < a; ++b) {
        const int differ =
            std::popcount(negative[static_cast<size_t>(a)] ^ negative[static_cast<size_t>(b)]);
        EXPECT_EQ(2 * differ, base) << "rows " << a << " and " << b << " of order " << base;
      }
    }
  }
}

TEST(HadamardTest, MultipliesByTheMatrixExactlyOnWholeNumbers) {
  for (const int64_t n : {1, 2, 8, 64, 12, 48, 20, 160, 28, 224, 1024}) {
    const HadamardShape shape = HadamardShapeOf(n);
    std::vector<float> row(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i)
      row[static_cast<size_t>(i)] = static_cast<float>(i * 37 % 19 - 9);
    std::vector<float> expected(row.size());
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = 0; c < n; ++c) {
        expected[static_cast<size_t>(r)] +=
            static_cast<float>(Element(shape, r, c)) * row[static_cast<size_t>(c)];
      }
    }
    for (float& value : expected) value *= 0.25f;
    HadamardRow(row.data(), n, 0.25f);
    EXPECT_EQ(row, expected) << n;
  }
}

TEST(HadamardTest, KeepsTheNorm) {
  for (const int64_t n : {4096, 14336}) {
    auto row = RandomFloats(n, 4);
    double before = 0, after = 0;
    for (const float value : row) before += double{value} * value;
    HadamardRow(row.data(), n, 1.0f / std::sqrt(static_cast<float>(n)));
    for (const float value : row) after += double{value} * value;
    EXPECT_TRUE(Near(after / before, 1.0, 1e-6));
  }
}

}  // namespace
}  // namespace nibble::testing
