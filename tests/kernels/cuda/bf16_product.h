// SPDX-License-Identifier: Apache-2.0
// Operands of bf16 products, and the definition that kernels are held to.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/linear_rows.h"
#include "tests/kernels/activations.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/support/cuda/simt_emulator.h"
#include "tests/support/near.h"

namespace nibble::testing {

// Some tokens times some weights.
struct BF16Product {
  BF16Product(int64_t rows, int64_t features, int64_t columns)
      : x(ToBF16(RandomFloats(rows * columns, 1))),
        w(ToBF16(RandomFloats(features * columns, 2))),
        bias(RandomFloats(features, 3)),
        out(features),
        cols(columns),
        device_x(x),
        device_w(w),
        device_bias(bias) {}

  template <typename Launch>
  std::vector<uint8_t> Multiply(Launch&& launch, int64_t rows, DType type) const {
    const auto y = OnDevice<uint8_t>::Poisoned(static_cast<size_t>(rows * out) * BytesOf(type));
    LinearRowsArgs args;
    args.count = 1;
    args.weights[0] = {device_w.data(), nullptr, device_bias.data(), out, {y.data(), type}, out};
    args.x = device_x.data();
    args.rows = rows;
    args.cols = cols;
    launch(TestDevice(), args);
    return y.Read();
  }

  std::vector<uint16_t> x, w;
  std::vector<float> bias;
  int64_t out, cols;
  OnDevice<uint16_t> device_x, device_w;
  OnDevice<float> device_bias;
};

// What `launch` makes of it, in both schedules, is near sums in double precision.
template <typename Launch>
void ExpectNearBF16(Launch&& launch, int64_t rows, int64_t out, int64_t cols, DType type) {
  SCOPED_TRACE(std::to_string(rows) + " tokens, " + std::to_string(out) + " x " +
               std::to_string(cols));
  const BF16Product c(rows, out, cols);
  Emulator().schedule = Schedule::kAscending;
  const auto bytes = c.Multiply(launch, rows, type);
  Emulator().schedule = Schedule::kDescending;
  EXPECT_EQ(c.Multiply(launch, rows, type), bytes);
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

}  // namespace nibble::testing
