// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/linear_exact.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/activations.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/support/cuda/simt_emulator.h"
#include "tests/support/near.h"
#include "tests/support/shapes.h"

namespace nibble::testing {
namespace {

std::vector<float> Multiply(const RandomWeight& weight, const std::vector<float>& bias,
                            const std::vector<float>& x, DType in, DType out, int64_t rows) {
  const WeightOnDevice device_weight(weight.view());
  const OnDevice<float> device_bias(bias), floats(x);
  const OnDevice<uint16_t> halves(ToBF16(x));
  const int64_t features = weight.view().rows;
  const auto y = OnDevice<float>::Poisoned(static_cast<size_t>(rows * features));
  LinearExactArgs args{};
  args.weight = device_weight.weight();
  args.bias = device_bias.data();
  args.in.format.dtype = in;
  args.in.cols = weight.view().cols;
  args.in.data = in == DType::kBF16 ? static_cast<void*>(halves.data()) : floats.data();
  args.rows = rows;
  args.out = Floats{y.data(), out};
  LaunchLinearExact(TestDevice(), args);
  std::vector<float> values = y.Read();
  if (out == DType::kBF16) {
    std::vector<uint16_t> bits(values.size());
    std::memcpy(bits.data(), values.data(), 2 * bits.size());
    values = FromBF16(bits);
  }
  return values;
}

class CudaLinearExact : public ::testing::TestWithParam<const Scheme*> {};

TEST_P(CudaLinearExact, IsNearTheSumInDoublePrecisionAndTheSameInEverySchedule) {
  for (const LinearShape& shape : kLinearShapes) {
    SCOPED_TRACE(::testing::Message() << shape.rows << " x " << shape.out << " x " << shape.in);
    const RandomWeight weight(*GetParam(), shape.out, shape.in, 7);
    const auto bias = RandomFloats(shape.out, 8);
    // Exact in bf16, so that both input types see the same numbers.
    const auto x = FromBF16(ToBF16(RandomFloats(shape.rows * shape.in, 9)));
    const auto y = Multiply(weight, bias, x, DType::kF32, DType::kF32, shape.rows);
    for (int64_t m = 0; m < shape.rows; ++m) {
      for (int64_t n = 0; n < shape.out; ++n) {
        double sum = bias[static_cast<size_t>(n)], size = std::abs(sum);
        for (int64_t k = 0; k < shape.in; ++k) {
          const double product = static_cast<double>(ReadWeight(weight.view(), n, k)) *
                                 x[static_cast<size_t>(m * shape.in + k)];
          sum += product;
          size += std::abs(product);
        }
        ASSERT_TRUE(Near(y[static_cast<size_t>(m * shape.out + n)], sum,
                         SumTolerance(kEpsilonF32, shape.in, size)))
            << m << ", " << n;
      }
    }
    EXPECT_EQ(Multiply(weight, bias, x, DType::kBF16, DType::kF32, shape.rows), y);
    EXPECT_EQ(Multiply(weight, bias, x, DType::kF32, DType::kBF16, shape.rows),
              FromBF16(ToBF16(y)));
    Emulator().schedule = Schedule::kDescending;
    EXPECT_EQ(Multiply(weight, bias, x, DType::kF32, DType::kF32, shape.rows), y);
    Emulator().schedule = Schedule::kAscending;
  }
}

std::vector<const Scheme*> AllSchemes() {
  std::vector<const Scheme*> schemes;
  for (const Scheme& scheme : kSchemes) schemes.push_back(&scheme);
  return schemes;
}

INSTANTIATE_TEST_SUITE_P(AllSchemes, CudaLinearExact, ::testing::ValuesIn(AllSchemes()),
                         [](const auto& param) {
                           std::string name(param.param->name);
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace nibble::testing
