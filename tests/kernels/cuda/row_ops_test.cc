// SPDX-License-Identifier: Apache-2.0
// Norm, gated activation and bias against their definitions in double precision, and their int8
// outputs against the codec.
#include "kernels/cuda/row_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/codec.h"
#include "tests/kernels/activations.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/support/cuda/simt_emulator.h"
#include "tests/support/near.h"
#include "tests/support/shapes.h"

namespace nibble::testing {
namespace {

constexpr int64_t kRows = 3;
constexpr ActFormat kFormats[] = {{DType::kF32, 0}, {DType::kBF16, 0}, {DType::kI8, kWholeRow}};
constexpr ActFormat kE4M3[] = {
    {DType::kF32, 0}, {DType::kF8E4M3, kWholeRow}, {DType::kI8, kWholeRow}};
constexpr ActFormat kGrouped[] = {{DType::kF32, 0}, {DType::kI8, 32}, {DType::kI8, 128}};
constexpr int64_t kWideRow = 4096;

// What the other views hold follows from the f32 view to the bit.
void ExpectViewsOfTheSameFloats(const ActsOnDevice& out, std::span<const ActFormat> formats,
                                int64_t rows, int64_t cols) {
  const std::vector<float> floats = As<float>(out.Data(0));
  for (size_t f = 1; f < formats.size(); ++f) {
    const ActFormat& format = formats[f];
    if (format.dtype == DType::kBF16) {
      EXPECT_EQ(As<uint16_t>(out.Data(f)), ToBF16(floats));
      continue;
    }
    const bool e4m3 = format.dtype == DType::kF8E4M3;
    const auto codes = As<int8_t>(out.Data(f));
    const auto scales = out.Scales(f);
    const auto sums = out.Sums(f);
    const int64_t width = format.group < 0 ? cols : format.group;
    const int64_t groups = format.GroupsPerRow(cols);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t begin = row * cols + g * width;
        const int64_t end = std::min(begin + width, (row + 1) * cols);
        float absmax = 0;
        for (int64_t i = begin; i < end; ++i) {
          absmax = std::max(absmax, std::abs(floats[static_cast<size_t>(i)]));
        }
        int32_t sum = 0;
        for (int64_t i = begin; i < end; ++i) {
          const float x = floats[static_cast<size_t>(i)];
          const int8_t code = e4m3 ? static_cast<int8_t>(F32ToE4M3(x * E4M3InverseScale(absmax)))
                                   : EncodeInt8(x, Int8InverseScale(absmax));
          ASSERT_EQ(codes[static_cast<size_t>(i)], code) << "row " << row << ", element " << i;
          sum += code;
        }
        EXPECT_EQ(scales[static_cast<size_t>(row * groups + g)],
                  e4m3 ? E4M3Scale(absmax) : Int8Scale(absmax));
        EXPECT_EQ(sums[static_cast<size_t>(row * groups + g)], e4m3 ? -1 : sum);  // as poisoned
      }
    }
  }
}

std::vector<int64_t> Lengths() {
  std::vector<int64_t> lengths(std::begin(kRowLengths), std::end(kRowLengths));
  lengths.push_back(kWideRow);
  return lengths;
}

TEST(CudaRmsNorm, AddsTheDeltaAndNormsTheRowsThatAreNamed) {
  for (const int64_t dim : Lengths()) {
    for (const std::span<const ActFormat> formats :
         {std::span<const ActFormat>(kFormats), std::span<const ActFormat>(kGrouped),
          std::span<const ActFormat>(kE4M3)}) {
      SCOPED_TRACE(dim);
      const auto x = RandomFloats(kRows * dim, 1);
      const auto delta = ToBF16(RandomFloats(kRows * dim, 2));
      const auto weight = RandomFloats(dim, 3);
      const std::vector<int32_t> rows = {2, 0};
      const OnDevice<float> device_x(x), device_weight(weight);
      const OnDevice<uint16_t> device_delta(delta);
      const OnDevice<int32_t> device_rows(rows);
      const ActsOnDevice out(formats, 2, dim);
      RmsNormArgs args{};
      args.x = device_x.data();
      args.delta = Floats{device_delta.data(), DType::kBF16};
      args.weight = device_weight.data();
      args.weight_offset = 1.0f;
      args.eps = 1e-5f;
      args.dim = dim;
      args.rows = device_rows.data();
      args.num_rows = 2;
      args.out = out.set();
      LaunchRmsNorm(TestDevice(), args);
      const auto residual = device_x.Read();
      const auto y = As<float>(out.Data(0));
      for (size_t i = 0; i < 2; ++i) {
        const auto row = static_cast<size_t>(rows[i] * dim);
        double squares = 0;
        for (size_t k = 0; k < static_cast<size_t>(dim); ++k) {
          const float h = x[row + k] + BF16ToF32(delta[row + k]);
          EXPECT_EQ(residual[row + k], h);
          squares += static_cast<double>(h) * h;
        }
        const double inverse = 1 / std::sqrt(squares / static_cast<double>(dim) + 1e-5);
        for (size_t k = 0; k < static_cast<size_t>(dim); ++k) {
          const double expected = residual[row + k] * inverse * (1.0 + weight[k]);
          EXPECT_TRUE(Near(y[i * static_cast<size_t>(dim) + k], expected,
                           SumTolerance(kEpsilonF32, dim, std::abs(expected))));
        }
      }
      ExpectViewsOfTheSameFloats(out, formats, 2, dim);
      // A row that is not named keeps its residual.
      EXPECT_EQ(residual[static_cast<size_t>(dim)], x[static_cast<size_t>(dim)]);
    }
  }
}

TEST(CudaRmsNorm, AValueThatIsNotFiniteReachesEveryFormatOfItsRowAndNoOther) {
  constexpr int64_t kDim = 129;
  auto x = RandomFloats(2 * kDim, 1);
  x[7] = std::numeric_limits<float>::infinity();
  const OnDevice<float> device_x(x), weight(std::vector<float>(kDim, 1.0f));
  const ActsOnDevice out(kFormats, 2, kDim), e4m3(kE4M3, 2, kDim);
  RmsNormArgs args{};
  args.x = device_x.data();
  args.weight = weight.data();
  args.eps = 1e-5f;
  args.dim = kDim;
  args.num_rows = 2;
  args.out = out.set();
  LaunchRmsNorm(TestDevice(), args);
  EXPECT_TRUE(std::isnan(As<float>(out.Data(0))[7]));
  EXPECT_TRUE(std::isnan(out.Scales(2)[0]));
  EXPECT_TRUE(std::isfinite(out.Scales(2)[1]));
  args.out = e4m3.set();
  LaunchRmsNorm(TestDevice(), args);
  EXPECT_TRUE(std::isnan(e4m3.Scales(1)[0]));
  EXPECT_TRUE(std::isfinite(e4m3.Scales(1)[1]));
}

TEST(CudaGatedActivation, IsTheActivationTimesUpInEveryFormat) {
  for (const GateActivation activation : {GateActivation::kSilu, GateActivation::kGeluTanh}) {
    for (const int64_t dim : Lengths()) {
      SCOPED_TRACE(dim);
      const auto gate = ToBF16(RandomFloats(kRows * dim, 1, 3.0f));
      const auto up = ToBF16(RandomFloats(kRows * dim, 2));
      const OnDevice<uint16_t> device_gate(gate), device_up(up);
      const ActsOnDevice out(kFormats, kRows, dim);
      GatedActivationArgs args{};
      args.gate = Floats{device_gate.data(), DType::kBF16};
      args.up = Floats{device_up.data(), DType::kBF16};
      args.rows = kRows;
      args.dim = dim;
      args.activation = activation;
      args.out = out.set();
      LaunchGatedActivation(TestDevice(), args);
      const auto y = As<float>(out.Data(0));
      for (size_t i = 0; i < y.size(); ++i) {
        const double x = BF16ToF32(gate[i]);
        const double act =
            activation == GateActivation::kSilu
                ? x / (1 + std::exp(-x))
                : 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        const double expected = act * BF16ToF32(up[i]);
        // The tanh form cancels for large negative x.
        ASSERT_TRUE(Near(y[i], expected, 16 * kEpsilonF32 * (std::abs(x) + 1)));
      }
      ExpectViewsOfTheSameFloats(out, kFormats, kRows, dim);
      const ActsOnDevice e4m3(kE4M3, kRows, dim);
      args.out = e4m3.set();
      LaunchGatedActivation(TestDevice(), args);
      ExpectViewsOfTheSameFloats(e4m3, kE4M3, kRows, dim);
    }
  }
}

TEST(CudaGatedActivation, HandsOutliersOverAndEncodesTheRestAsIfTheyWereZero) {
  for (const int64_t dim : Lengths()) {
    SCOPED_TRACE(dim);
    std::vector<int32_t> features;
    for (int32_t k = 0; k < dim && features.size() < 100; k += 1 + k % 9) features.push_back(k);
    const auto count = static_cast<int32_t>(features.size());
    const int64_t stride = OutlierStride(count);
    const OnDevice<int32_t> list(features);
    // The row itself must come out of it whole: for the next format.
    const ActFormat formats[] = {
        {DType::kF32, 0}, {DType::kI8, kWholeRow, {count, list.data()}}, {DType::kI8, kWholeRow}};
    const auto gate = RandomFloats(kRows * dim, 1);
    auto up = RandomFloats(kRows * dim, 2);
    for (int64_t row = 0; row < kRows; ++row) {  // They would spoil the scale.
      for (const int32_t k : features) up[static_cast<size_t>(row * dim + k)] *= 100.0f;
    }
    const OnDevice<float> device_gate(gate), device_up(up);
    const ActsOnDevice out(formats, kRows, dim);
    GatedActivationArgs args{};
    args.gate = Floats{device_gate.data(), DType::kF32};
    args.up = Floats{device_up.data(), DType::kF32};
    args.rows = kRows;
    args.dim = dim;
    args.activation = GateActivation::kSilu;
    args.out = out.set();
    LaunchGatedActivation(TestDevice(), args);
    const auto y = As<float>(out.Data(0));
    const auto outliers = out.Outliers(1);
    const auto codes = As<int8_t>(out.Data(1)), whole = As<int8_t>(out.Data(2));
    for (int64_t row = 0; row < kRows; ++row) {
      std::vector<float> rest(y.begin() + row * dim, y.begin() + (row + 1) * dim);
      const auto absmax = [&rest] {
        float most = 0;
        for (const float x : rest) most = std::max(most, std::abs(x));
        return most;
      };
      const auto at = static_cast<size_t>(row);
      EXPECT_EQ(out.Scales(2)[at], Int8Scale(absmax()));
      for (int64_t k = 0; k < dim; ++k) {
        ASSERT_EQ(whole[static_cast<size_t>(row * dim + k)],
                  EncodeInt8(rest[static_cast<size_t>(k)], Int8InverseScale(absmax())));
      }
      for (int64_t i = 0; i < stride; ++i) {
        const uint16_t stored = outliers[static_cast<size_t>(row * stride + i)];
        if (i >= count) {
          EXPECT_EQ(stored, 0);
          continue;
        }
        float& value = rest[static_cast<size_t>(features[static_cast<size_t>(i)])];
        EXPECT_EQ(stored, F32ToBF16(value)) << row << ", " << i;
        value = 0;
      }
      EXPECT_EQ(out.Scales(1)[at], Int8Scale(absmax()));
      int32_t sum = 0;
      for (int64_t k = 0; k < dim; ++k) {
        const int8_t code = EncodeInt8(rest[static_cast<size_t>(k)], Int8InverseScale(absmax()));
        ASSERT_EQ(codes[static_cast<size_t>(row * dim + k)], code) << row << ", " << k;
        sum += code;
      }
      EXPECT_EQ(out.Sums(1)[at], sum);
    }
  }
}

TEST(CudaAddBias, AddsToEveryRow) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const auto y = RandomFloats(5 * 301, 1);
    const auto bias = RandomFloats(301, 2);
    const OnDevice<float> device_bias(bias), floats(y);
    const OnDevice<uint16_t> halves(ToBF16(y));
    const bool bf16 = type == DType::kBF16;
    LaunchAddBias(TestDevice(),
                  {Floats{bf16 ? static_cast<void*>(halves.data()) : floats.data(), type},
                   device_bias.data(), 5, 301});
    const auto sum = bf16 ? FromBF16(halves.Read()) : floats.Read();
    for (size_t i = 0; i < y.size(); ++i) {
      const float before = bf16 ? BF16ToF32(F32ToBF16(y[i])) : y[i];
      const float expected = before + bias[i % 301];
      EXPECT_EQ(sum[i], bf16 ? RoundToBF16(expected) : expected);
    }
  }
}

}  // namespace
}  // namespace nibble::testing
