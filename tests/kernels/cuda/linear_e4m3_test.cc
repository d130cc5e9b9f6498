// SPDX-License-Identifier: Apache-2.0
// The product of e4m3 weights and e4m3 activations, and the parts of it for many tokens, against
// their definitions.
#include "kernels/cuda/linear_e4m3.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/codec.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_rows.h"
#include "kernels/cuda/scale_sums.h"
#include "tests/kernels/activations.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/kernels/random_weight.h"
#include "tests/support/cuda/emulated_device.h"
#include "tests/support/cuda/simt_emulator.h"
#include "tests/support/near.h"
#include "tests/support/shapes.h"

namespace nibble::testing {
namespace {

const Scheme& Fp8() { return *FindScheme("fp8"); }

TEST(E4M3PairTest, IsEveryCodeButNaNExactly) {
  for (uint32_t code = 0; code < 256; ++code) {
    const float expected = E4M3ToF32(static_cast<uint8_t>(code));
    for (int byte = 0; byte < 4; ++byte) {
      const uint32_t word = code << (8 * byte);
      const uint32_t pair = byte % 2 == 0 ? E4M3EvenPair(word) : E4M3OddPair(word);
      const float value = F16ToF32(static_cast<uint16_t>(pair >> (16 * (byte / 2))));
      if ((code & 0x7f) == 0x7f) {
        EXPECT_EQ(std::abs(value) * kE4M3PairUnit, 480.0f);
      } else {
        EXPECT_EQ(value * kE4M3PairUnit, expected) << code;
        EXPECT_EQ(std::signbit(value), std::signbit(expected)) << code;
      }
      EXPECT_EQ(pair & ~(0xffffu << (16 * (byte / 2))), 0u) << "the other half is untouched";
    }
  }
}

// Tokens of random codes with scales.
struct Tokens {
  Tokens(int64_t rows, int64_t cols, uint32_t seed) {
    std::mt19937 random(seed);
    for (int64_t i = 0; i < rows * cols; ++i) {
      const auto code = static_cast<uint8_t>(random());
      codes.push_back((code & 0x7f) == 0x7f ? uint8_t{0} : code);
    }
    for (const float x : RandomFloats(rows, seed)) scales.push_back(0.01f + std::abs(x));
  }
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

struct Weight {
  Weight(int64_t rows, int64_t cols, uint32_t seed)
      : host(Fp8(), rows, cols, seed),
        stored(host.view()),
        scales(OnDevice<float>::Poisoned(static_cast<size_t>(rows))),
        bias(RandomFloats(rows, seed)),
        device_bias(bias) {
    LaunchRowScales(TestDevice(), stored.weight(), scales.data());
  }
  RowsWeight With(bool biased, Floats out) const {
    const int64_t rows = host.view().rows;
    return {stored.weight().codes,
            scales.data(),
            biased ? device_bias.data() : nullptr,
            rows,
            out,
            rows};
  }
  RandomWeight host;
  WeightOnDevice stored;
  OnDevice<float> scales;
  std::vector<float> bias;
  OnDevice<float> device_bias;
};

// The bytes of each output, for the first `rows` of the tokens.
std::vector<std::vector<uint8_t>> Multiply(const std::vector<std::unique_ptr<Weight>>& weights,
                                           const Tokens& tokens, int64_t rows, int64_t cols,
                                           DType type, bool biased) {
  const OnDevice<uint8_t> x(tokens.codes);
  const OnDevice<float> scales(tokens.scales);
  LinearRowsArgs args;
  args.count = static_cast<int>(weights.size());
  args.x = x.data();
  args.scales = scales.data();
  args.rows = rows;
  args.cols = cols;
  std::vector<OnDevice<uint8_t>> out;
  for (size_t i = 0; i < weights.size(); ++i) {
    out.push_back(OnDevice<uint8_t>::Poisoned(
        static_cast<size_t>(rows * weights[i]->host.view().rows) * BytesOf(type)));
    args.weights[i] = weights[i]->With(biased, {out[i].data(), type});
  }
  LaunchLinearE4M3(TestDevice(), args);
  std::vector<std::vector<uint8_t>> bytes;
  for (const auto& array : out) bytes.push_back(array.Read());
  return bytes;
}

// Weights that share `rows` tokens.
void ExpectNear(const std::vector<int64_t>& outs, int64_t rows, int64_t cols, DType type,
                bool biased) {
  SCOPED_TRACE(std::to_string(rows) + " tokens, " + std::to_string(outs[0]) + " x " +
               std::to_string(cols));
  const Tokens tokens(rows, cols, 7);
  std::vector<std::unique_ptr<Weight>> weights;
  for (const int64_t out : outs) {
    weights.push_back(std::make_unique<Weight>(out, cols, static_cast<uint32_t>(weights.size())));
  }
  Emulator().schedule = Schedule::kAscending;
  const auto bytes = Multiply(weights, tokens, rows, cols, type, biased);
  Emulator().schedule = Schedule::kDescending;
  EXPECT_EQ(Multiply(weights, tokens, rows, cols, type, biased), bytes);
  for (size_t i = 0; i < outs.size(); ++i) {
    const WeightView& view = weights[i]->host.view();
    const auto y = type == DType::kF32 ? As<float>(bytes[i]) : FromBF16(As<uint16_t>(bytes[i]));
    for (int64_t m = 0; m < rows; ++m) {
      const double token = tokens.scales[static_cast<size_t>(m)];
      for (int64_t n = 0; n < outs[i]; ++n) {
        double sum = biased ? weights[i]->bias[static_cast<size_t>(n)] : 0.0;
        double magnitude = std::abs(sum);
        for (int64_t k = 0; k < cols; ++k) {
          const double product = token * ReadWeight(view, n, k) *
                                 E4M3ToF32(tokens.codes[static_cast<size_t>(m * cols + k)]);
          sum += product;
          magnitude += std::abs(product);
        }
        double tolerance = SumTolerance(kEpsilonF32, cols, magnitude);
        if (type == DType::kBF16) tolerance += kEpsilonBF16 / 2 * std::abs(sum);
        ASSERT_TRUE(Near(y[static_cast<size_t>(m * outs[i] + n)], sum, tolerance))
            << "token " << m << ", feature " << n;
      }
    }
  }
}

TEST(CudaLinearE4M3Test, OddShapesInEveryTile) {
  for (const LinearShape& shape : kLinearShapes) {
    for (const int64_t rows : {shape.rows, int64_t{9}, int64_t{17}, int64_t{33}}) {
      ExpectNear({shape.out}, rows, shape.in, rows % 2 == 0 ? DType::kBF16 : DType::kF32,
                 rows != 17);
    }
  }
}

TEST(CudaLinearE4M3Test, MoreStagesThanThePipelineHoldsAndMoreThanOneBlockOfTokens) {
  ExpectNear({40}, 3, 2576, DType::kBF16, false);
  ExpectNear({36}, 70, 1296, DType::kF32, true);
}

TEST(CudaLinearE4M3Test, ThreeWeightsThatShareTheirInput) {
  for (const int64_t rows : {1, 16, 33}) ExpectNear({70, 33, 129}, rows, 208, DType::kBF16, true);
}

TEST(CudaLinearE4M3Test, ARowHasTheSameBitsInEveryBatch) {
  constexpr int64_t kCols = 656, kOut = 50, kRows = 70;
  const Tokens tokens(kRows, kCols, 3);
  std::vector<std::unique_ptr<Weight>> weights;
  weights.push_back(std::make_unique<Weight>(kOut, kCols, 1));
  const auto all = As<float>(Multiply(weights, tokens, kRows, kCols, DType::kF32, true)[0]);
  for (const int64_t rows : {1, 8, 12, 30, 64}) {
    const auto some = As<float>(Multiply(weights, tokens, rows, kCols, DType::kF32, true)[0]);
    EXPECT_EQ(some, std::vector<float>(all.begin(), all.begin() + rows * kOut)) << rows;
  }
}

TEST(CudaLinearE4M3Test, ATokenThatIsNotFiniteReachesItsOwnRowOnly) {
  Tokens tokens(2, 64, 2);
  tokens.scales[0] = std::nanf("");
  std::vector<std::unique_ptr<Weight>> weights;
  weights.push_back(std::make_unique<Weight>(32, 64, 1));
  const auto y = As<float>(Multiply(weights, tokens, 2, 64, DType::kF32, false)[0]);
  for (size_t i = 0; i < 64; ++i) EXPECT_EQ(std::isnan(y[i]), i < 32);
}

TEST(CudaLinearE4M3Test, ACodeThatIsNaNPoisonsItsOutputFeature) {
  constexpr int64_t kRows = 11, kCols = 70;
  const RandomWeight weight(Fp8(), kRows, kCols, 4);
  std::vector<uint8_t> codes(static_cast<size_t>(kRows * kCols));
  std::memcpy(codes.data(), weight.view().codes, codes.size());
  codes[2 * kCols + 69] = 0x7f;
  codes[9 * kCols] = 0xff;
  WeightView view = weight.view();
  view.codes = codes.data();
  const WeightOnDevice stored(view);
  const auto scales = OnDevice<float>::Poisoned(kRows);
  LaunchRowScales(TestDevice(), stored.weight(), scales.data());
  const auto found = scales.Read();
  for (int64_t n = 0; n < kRows; ++n) {
    if (n == 2 || n == 9) {
      EXPECT_TRUE(std::isnan(found[static_cast<size_t>(n)]));
    } else {
      EXPECT_EQ(found[static_cast<size_t>(n)], ReadScale(view, n, 0));
    }
  }
}

TEST(WidenE4M3Test, IsEveryCodeInBF16) {
  for (const size_t count : {1u, 15u, 16u, 256u, 5003u}) {
    std::vector<uint8_t> codes(count);
    for (size_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(7 * i + 1);
    const OnDevice<uint8_t> in(codes);
    const auto out = OnDevice<uint16_t>::Poisoned(count);
    LaunchWidenE4M3(TestDevice(), in.data(), static_cast<int64_t>(count), out.data());
    const auto halves = out.Read();
    for (size_t i = 0; i < count; ++i) {
      EXPECT_EQ(halves[i], F32ToBF16(E4M3ToF32(codes[i]))) << i;
    }
  }
}

TEST(ScaleSumsTest, ScalesAndAddsIntoItsColumns) {
  constexpr int64_t kRows = 3, kFeatures = 300, kAll = 307, kFirst = 4;
  const auto sums = RandomFloats(kRows * kFeatures, 1), tokens = RandomFloats(kRows, 2),
             scales = RandomFloats(kFeatures, 3), bias = RandomFloats(kFeatures, 4);
  const OnDevice<float> device_sums(sums), device_tokens(tokens), device_scales(scales),
      device_bias(bias);
  for (const bool biased : {false, true}) {
    const OnDevice<float> out(std::vector<float>(kRows * kAll, 7.0f));
    LaunchScaleSums(TestDevice(),
                    {device_sums.data(), DType::kF32, device_tokens.data(), device_scales.data(),
                     biased ? device_bias.data() : nullptr, kRows, kFeatures,
                     Floats{out.data(), DType::kF32}, kFirst, kAll});
    const auto y = out.Read();
    for (int64_t m = 0; m < kRows; ++m) {
      for (int64_t n = 0; n < kAll; ++n) {
        float expected = 7.0f;
        if (const int64_t i = n - kFirst; i >= 0 && i < kFeatures) {
          expected = sums[static_cast<size_t>(m * kFeatures + i)] *
                     (tokens[static_cast<size_t>(m)] * scales[static_cast<size_t>(i)]);
          if (biased) expected += bias[static_cast<size_t>(i)];
        }
        EXPECT_EQ(y[static_cast<size_t>(m * kAll + n)], expected);
      }
    }
  }
}

// Both ways of a product of many tokens, as the backend takes them: the library's, where it has
// one, and bf16's. The GPU adds products of e4m3 in fewer bits than f32 has: each of its products
// of 32 features keeps some 14 bits of the sum (DeepSeek-V3, arXiv 2412.19437, section 3.3.2), and
// an H100 was 1.6 times 2^-13 of the magnitude off after three of them.
TEST(CudaLinearE4M3Test, ManyTokensThroughTheLibrary) {
  constexpr int64_t kRows = 67, kCols = 80;
  constexpr double kEpsilon = 0x1p-13 * ((kCols + 31) / 32);
  const std::vector<int64_t> outs = {144, 33};
  const Tokens tokens(kRows, kCols, 5);
  const OnDevice<uint8_t> x(tokens.codes);
  const OnDevice<float> scales(tokens.scales);
  const RandomWeight first(Fp8(), outs[0], kCols, 1), second(Fp8(), outs[1], kCols, 2);
  const std::vector<float> bias = RandomFloats(outs[0], 3);
  const auto workspace = LinearWorkspace::Make(TestDevice()).value();
  const auto linear =
      PrepareCudaLinear(TestDevice(), *workspace,
                        {{first.view(), second.view()}, {bias.data(), nullptr}}, Mode::kFast)
          .value();
  ASSERT_EQ(linear->formats, (std::vector<ActFormat>{{DType::kF8E4M3, kWholeRow}}));
  for (const bool library : {false, true}) {
    EmulatedDevice().e4m3_products = library;
    LinearArgs args{};
    args.linear = linear.get();
    args.in.count = 1;
    args.in.views[0] = {{DType::kF8E4M3, kWholeRow}, kCols, x.data(), scales.data(), nullptr};
    args.rows = kRows;
    std::vector<OnDevice<float>> out;
    for (size_t i = 0; i < outs.size(); ++i) {
      out.push_back(OnDevice<float>::Poisoned(static_cast<size_t>(kRows * outs[i])));
      args.out[i] = {out[i].data(), DType::kF32};
    }
    ASSERT_TRUE(RunCudaLinear(TestDevice(), *workspace, args).ok());
    for (size_t i = 0; i < outs.size(); ++i) {
      const auto y = out[i].Read();
      for (int64_t m = 0; m < kRows; ++m) {
        for (int64_t n = 0; n < outs[i]; ++n) {
          double sum = i == 0 ? bias[static_cast<size_t>(n)] : 0.0, magnitude = std::abs(sum);
          for (int64_t k = 0; k < kCols; ++k) {
            const double product = static_cast<double>(tokens.scales[static_cast<size_t>(m)]) *
                                   ReadWeight(i == 0 ? first.view() : second.view(), n, k) *
                                   E4M3ToF32(tokens.codes[static_cast<size_t>(m * kCols + k)]);
            sum += product;
            magnitude += std::abs(product);
          }
          ASSERT_TRUE(Near(y[static_cast<size_t>(m * outs[i] + n)], sum, kEpsilon * magnitude))
              << "token " << m << ", feature " << n;
        }
      }
    }
  }
  EmulatedDevice().e4m3_products = false;
}

}  // namespace
}  // namespace nibble::testing
