// SPDX-License-Identifier: Apache-2.0
// The bf16 product whose rows do not depend on each other, against sums in double precision.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cuda/linear_rows.h"
#include "tests/kernels/activations.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/support/cuda/simt_emulator.h"
#include "tests/support/near.h"
#include "tests/support/shapes.h"

namespace nibble::testing {
namespace {

// Some tokens times some weights.
struct Case {
  Case(int64_t rows, int64_t features, int64_t columns)
      : x(ToBF16(RandomFloats(rows * columns, 1))),
        w(ToBF16(RandomFloats(features * columns, 2))),
        bias(RandomFloats(features, 3)),
        out(features),
        cols(columns),
        device_x(x),
        device_w(w),
        device_bias(bias) {}

  std::vector<uint8_t> Multiply(int64_t rows, DType type) const {
    const auto y = OnDevice<uint8_t>::Poisoned(static_cast<size_t>(rows * out) * BytesOf(type));
    LinearRowsArgs args;
    args.count = 1;
    args.weights[0] = {device_w.data(), nullptr, device_bias.data(), out, {y.data(), type}, out};
    args.x = device_x.data();
    args.rows = rows;
    args.cols = cols;
    LaunchLinearBF16(TestDevice(), args);
    return y.Read();
  }

  std::vector<uint16_t> x, w;
  std::vector<float> bias;
  int64_t out, cols;
  OnDevice<uint16_t> device_x, device_w;
  OnDevice<float> device_bias;
};

void ExpectNear(int64_t rows, int64_t out, int64_t cols, DType type) {
  SCOPED_TRACE(std::to_string(rows) + " tokens, " + std::to_string(out) + " x " +
               std::to_string(cols));
  const Case c(rows, out, cols);
  Emulator().schedule = Schedule::kAscending;
  const auto bytes = c.Multiply(rows, type);
  Emulator().schedule = Schedule::kDescending;
  EXPECT_EQ(c.Multiply(rows, type), bytes);
  const auto y = type == DType::kF32 ? As<float>(bytes) : FromBF16(As<uint16_t>(bytes));
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < out; ++n) {
      double sum = c.bias[static_cast<size_t>(n)], magnitude = std::abs(sum);
      for (int64_t k = 0; k < cols; ++k) {
        const double product = double{BF16ToF32(c.x[static_cast<size_t>(m * cols + k)])} *
                               double{BF16ToF32(c.w[static_cast<size_t>(n * cols + k)])};
        sum += product;
        magnitude += std::abs(product);
      }
      double tolerance = SumTolerance(kEpsilonF32, cols, magnitude);
      if (type == DType::kBF16) tolerance += kEpsilonBF16 / 2 * std::abs(sum);
      ASSERT_TRUE(Near(y[static_cast<size_t>(m * out + n)], sum, tolerance))
          << "token " << m << ", feature " << n;
    }
  }
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
  const Case c(kRows, kOut, kCols);
  const auto all = As<float>(c.Multiply(kRows, DType::kF32));
  for (const int64_t rows : {1, 12, 30, 64, 65}) {
    const auto some = As<float>(c.Multiply(rows, DType::kF32));
    EXPECT_EQ(some, std::vector<float>(all.begin(), all.begin() + rows * kOut)) << rows;
  }
}

}  // namespace
}  // namespace nibble::testing
