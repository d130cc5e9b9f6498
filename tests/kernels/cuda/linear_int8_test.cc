// SPDX-License-Identifier: Apache-2.0
// The W8A8 product against its definition, to the bit.
#include <gtest/gtest.h>

#include <memory>
#include <random>

#include "kernels/codec.h"
#include "kernels/cuda/linear_rows.h"
#include "tests/kernels/activations.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/kernels/random_weight.h"
#include "tests/support/cuda/simt_emulator.h"
#include "tests/support/shapes.h"

namespace nibble::testing {
namespace {

const Scheme& W8A8() { return *FindScheme("w8a8"); }

// A weight as it is stored, and its scales.
struct Weight {
  explicit Weight(const WeightView& view)
      : stored(view), scales(OnDevice<float>::Poisoned(static_cast<size_t>(view.rows))) {
    LaunchRowScales(TestDevice(), stored.weight(), scales.data());
  }
  RowsWeight With(const float* bias, Floats out) const {
    const int64_t rows = stored.weight().rows;
    return {stored.weight().codes, scales.data(), bias, rows, out, rows};
  }
  WeightOnDevice stored;
  OnDevice<float> scales;
};

TEST(RowScalesTest, AreThoseThatAreStored) {
  for (const int64_t rows : {1, 7, 8, 70}) {
    const RandomWeight weight(W8A8(), rows, 131, 3);
    const auto scales = Weight(weight.view()).scales.Read();
    for (int64_t n = 0; n < rows; ++n) {
      EXPECT_EQ(scales[static_cast<size_t>(n)], ReadScale(weight.view(), n, 0));
    }
  }
}

// Tokens of int8 codes with scales.
struct Tokens {
  Tokens(int64_t rows, int64_t cols, uint32_t seed) {
    std::mt19937 random(seed);
    for (int64_t i = 0; i < rows * cols; ++i) {
      codes.push_back(static_cast<int8_t>(static_cast<int>(random() % 255) - 127));
    }
    for (const float x : RandomFloats(rows, seed)) scales.push_back(0.01f + std::abs(x));
  }
  std::vector<int8_t> codes;
  std::vector<float> scales;
};

// Weights that share `rows` tokens; every out and bias of type `type`.
void ExpectExact(const std::vector<int64_t>& outs, int64_t rows, int64_t cols, DType type,
                 bool biased) {
  SCOPED_TRACE(std::to_string(rows) + " tokens, " + std::to_string(outs[0]) + " x " +
               std::to_string(cols));
  const Tokens tokens(rows, cols, 7);
  const OnDevice<int8_t> x(tokens.codes);
  const OnDevice<float> scales(tokens.scales);
  LinearRowsArgs args;
  args.count = static_cast<int>(outs.size());
  args.x = x.data();
  args.scales = scales.data();
  args.rows = rows;
  args.cols = cols;
  std::vector<RandomWeight> weights;
  std::vector<std::vector<float>> biases;
  std::vector<std::unique_ptr<Weight>> on_device;
  std::vector<OnDevice<float>> on_device_biases;
  for (size_t i = 0; i < outs.size(); ++i) {
    weights.emplace_back(W8A8(), outs[i], cols, static_cast<uint32_t>(i));
    on_device.push_back(std::make_unique<Weight>(weights[i].view()));
    biases.push_back(RandomFloats(outs[i], static_cast<uint32_t>(i)));
    on_device_biases.emplace_back(biases[i]);
  }
  for (const Schedule schedule : {Schedule::kDescending, Schedule::kAscending}) {
    Emulator().schedule = schedule;
    std::vector<OnDevice<uint8_t>> out;
    for (size_t i = 0; i < outs.size(); ++i) {
      out.push_back(
          OnDevice<uint8_t>::Poisoned(static_cast<size_t>(rows * outs[i]) * BytesOf(type)));
      args.weights[i] =
          on_device[i]->With(biased ? on_device_biases[i].data() : nullptr, {out[i].data(), type});
    }
    LaunchLinearInt8(TestDevice(), args);
    for (size_t i = 0; i < outs.size(); ++i) {
      std::vector<float> expected;
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t n = 0; n < outs[i]; ++n) {
          int32_t sum = 0;
          for (int64_t k = 0; k < cols; ++k) {
            sum +=
                tokens.codes[static_cast<size_t>(m * cols + k)] * ReadCode(weights[i].view(), n, k);
          }
          float y = static_cast<float>(sum) *
                    (tokens.scales[static_cast<size_t>(m)] * ReadScale(weights[i].view(), n, 0));
          if (biased) y += biases[i][static_cast<size_t>(n)];
          expected.push_back(y);
        }
      }
      if (type == DType::kF32) {
        EXPECT_EQ(As<float>(out[i].Read()), expected);
      } else {
        EXPECT_EQ(As<uint16_t>(out[i].Read()), ToBF16(expected));
      }
    }
  }
}

TEST(CudaLinearInt8Test, ExactForOddShapesInEveryTile) {
  for (const LinearShape& shape : kLinearShapes) {
    for (const int64_t rows : {shape.rows, int64_t{17}, int64_t{65}}) {
      ExpectExact({shape.out}, rows, shape.in, rows % 2 == 0 ? DType::kF32 : DType::kBF16,
                  rows != 17);
    }
  }
}

TEST(CudaLinearInt8Test, MoreStagesThanThePipelineHoldsAndMoreThanOneBlockOfTokens) {
  ExpectExact({40}, 3, 2576, DType::kBF16, false);
  ExpectExact({72}, 64, 1040, DType::kF32, true);
  ExpectExact({136}, 150, 528, DType::kBF16, true);
}

TEST(CudaLinearInt8Test, ThreeWeightsThatShareTheirInput) {
  for (const int64_t rows : {1, 16, 33, 130}) {
    ExpectExact({70, 33, 129}, rows, 208, DType::kBF16, true);
  }
}

TEST(CudaLinearInt8Test, ExtremeCodesAddUpExactly) {
  constexpr int64_t kCols = 4096;
  std::vector<uint32_t> codes(8 * kCols / 4, 0x80808080u);  // -128
  const std::vector<uint16_t> scales(8, F32ToBF16(1.0f));
  WeightView view;
  view.scheme = &W8A8();
  view.rows = 8;
  view.cols = kCols;
  view.codes = codes.data();
  view.scales = scales.data();
  const Weight weight(view);
  const OnDevice<int8_t> x(std::vector<int8_t>(kCols, 127));
  const OnDevice<float> one(std::vector<float>{1.0f});
  const auto out = OnDevice<float>::Poisoned(8);
  LinearRowsArgs args;
  args.count = 1;
  args.weights[0] = weight.With(nullptr, {out.data(), DType::kF32});
  args.x = x.data();
  args.scales = one.data();
  args.rows = 1;
  args.cols = kCols;
  LaunchLinearInt8(TestDevice(), args);
  EXPECT_EQ(out.Read(), std::vector<float>(8, -128.0f * 127.0f * kCols));
}

TEST(CudaLinearInt8Test, ATokenThatIsNotFiniteReachesItsOwnRowOnly) {
  const RandomWeight weight(W8A8(), 32, 64, 1);
  const Weight on_device(weight.view());
  const Tokens tokens(2, 64, 2);
  const OnDevice<int8_t> x(tokens.codes);
  const OnDevice<float> scales(std::vector<float>{std::nanf(""), 1.0f});
  const auto out = OnDevice<float>::Poisoned(64);
  LinearRowsArgs args;
  args.count = 1;
  args.weights[0] = on_device.With(nullptr, {out.data(), DType::kF32});
  args.x = x.data();
  args.scales = scales.data();
  args.rows = 2;
  args.cols = 64;
  LaunchLinearInt8(TestDevice(), args);
  const auto y = out.Read();
  for (size_t i = 0; i < 64; ++i) EXPECT_EQ(std::isnan(y[i]), i < 32);
}

}  // namespace
}  // namespace nibble::testing
