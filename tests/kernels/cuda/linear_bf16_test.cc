// SPDX-License-Identifier: Apache-2.0
// The bf16 product whose rows do not depend on each other, against sums in double precision.
#include <gtest/gtest.h>

#include "tests/kernels/cuda/bf16_product.h"
#include "tests/support/shapes.h"

namespace nibble::testing {
namespace {

void ExpectNear(int64_t rows, int64_t out, int64_t cols, DType type) {
  ExpectNearBF16(LaunchLinearBF16, rows, out, cols, type);
}

TEST(CudaLinearBF16Test, OddShapesInEveryTile) {
  for (const LinearShape& shape : kLinearShapes) {
    for (const int64_t rows : {shape.rows, int64_t{17}, int64_t{65}}) {
      ExpectNear(rows, shape.out, shape.in, rows % 2 == 0 ? DType::kF32 : DType::kBF16);
    }
  }
}

TEST(CudaLinearBF16Test, MoreStagesThanThePipelineHoldsAndMoreThanOneBlock) {
  ExpectNear(3, 40, 1288, DType::kBF16);
  ExpectNear(64, 72, 520, DType::kF32);
  ExpectNear(150, 136, 264, DType::kBF16);
}

TEST(CudaLinearBF16Test, ARowHasTheSameBitsInEveryBatch) {
  constexpr int64_t kCols = 600, kOut = 50, kRows = 140;
  const BF16Product c(kRows, kOut, kCols);
  const auto all = As<float>(c.Multiply(LaunchLinearBF16, kRows, DType::kF32));
  for (const int64_t rows : {1, 12, 30, 64, 65}) {
    const auto some = As<float>(c.Multiply(LaunchLinearBF16, rows, DType::kF32));
    EXPECT_EQ(some, std::vector<float>(all.begin(), all.begin() + rows * kOut)) << rows;
  }
}

}  // namespace
}  // namespace nibble::testing
