// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/hessian.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/kernels/activations.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/support/cuda/simt_emulator.h"

namespace nibble::testing {
namespace {

TEST(TriangleTileTest, CoversTheTriangleInOrder) {
  int64_t index = 0;
  for (int64_t row = 0; row < 300; ++row) {
    for (int64_t column = 0; column <= row; ++column, ++index) {
      EXPECT_EQ(TriangleTileAt(index).row, row);
      EXPECT_EQ(TriangleTileAt(index).column, column);
    }
  }
}

TEST(CudaHessianTest, IsTheChainOfFusedSumsBelowTheDiagonal) {
  // One tile, tails, several tiles; whole and odd vectors; more and fewer rows than the stages
  // hold.
  for (const int64_t dim : {1, 17, 64, 127, 128, 132, 257}) {
    for (const int64_t rows : {1, 16, 45, 100}) {
      const auto x = RandomFloats(rows * dim, 1);
      const auto start = RandomFloats(dim * dim, 2);
      std::vector<float> expected = start;
      for (int64_t i = 0; i < dim; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          float& sum = expected[static_cast<size_t>(i * dim + j)];
          for (int64_t r = 0; r < rows; ++r) {
            sum = std::fma(x[static_cast<size_t>(r * dim + i)], x[static_cast<size_t>(r * dim + j)],
                           sum);
          }
        }
      }
      for (const Schedule schedule : {Schedule::kDescending, Schedule::kAscending}) {
        Emulator().schedule = schedule;
        const OnDevice<float> in(x), h(start);
        LaunchHessian(TestDevice(), {in.data(), rows, dim, h.data()});
        EXPECT_EQ(h.Read(), expected) << dim << " columns, " << rows << " rows";
      }
    }
  }
}

TEST(CudaHessianTest, ANanStaysInItsRowAndColumn) {
  constexpr int64_t kDim = 132, kRows = 20, kColumn = 50;
  auto x = RandomFloats(kRows * kDim, 3);
  x[7 * kDim + kColumn] = std::numeric_limits<float>::quiet_NaN();
  const OnDevice<float> in(x), out(std::vector<float>(kDim * kDim, 0.0f));
  LaunchHessian(TestDevice(), {in.data(), kRows, kDim, out.data()});
  const auto h = out.Read();
  for (int64_t i = 0; i < kDim; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      EXPECT_EQ(std::isnan(h[static_cast<size_t>(i * kDim + j)]), i == kColumn || j == kColumn);
    }
  }
}

}  // namespace
}  // namespace nibble::testing
