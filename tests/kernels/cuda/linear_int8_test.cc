// SPDX-License-Identifier: Apache-2.0
// The W8A8 product against its definition, to the bit.
#include <gtest/gtest.h>

#include <array>

#include "kernels/cuda/linear.h"
#include "tests/kernels/cuda/int8_product.h"
#include "tests/support/shapes.h"

namespace nibble::testing {
namespace {

// Weights that share `rows` tokens.
void ExpectExact(const std::vector<int64_t>& outs, int64_t rows, int64_t cols, DType type,
                 bool biased) {
  ExpectExactInt8(LaunchLinearInt8, outs, rows, cols, type, biased);
}

TEST(RowScalesTest, AreThoseThatAreStored) {
  for (const int64_t rows : {1, 7, 8, 70}) {
    const RandomWeight weight(W8A8(), rows, 131, 3);
    const auto scales = Int8Weight(weight.view()).scales.Read();
    for (int64_t n = 0; n < rows; ++n) {
      EXPECT_EQ(scales[static_cast<size_t>(n)], ReadScale(weight.view(), n, 0));
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

// Where the library multiplies: slices of tokens and of features, and what it leaves to the kernel.
TEST(CudaLinearInt8Test, ManyTokensHaveTheBitsOfFew) {
  constexpr int64_t kCols = 48, kRows = 601;
  for (const DType type : {DType::kBF16, DType::kF32}) {
    const std::vector<int64_t> outs = {532, 33};
    const Int8Tokens tokens(kRows, kCols, 11);
    const OnDevice<int8_t> x(tokens.codes);
    const OnDevice<float> scales(tokens.scales);
    const RandomWeight first(W8A8(), outs[0], kCols, 1), second(W8A8(), outs[1], kCols, 2);
    const std::vector<float> bias = RandomFloats(outs[0], 3);
    const auto workspace = LinearWorkspace::Make(TestDevice()).value();
    const auto linear =
        PrepareCudaLinear(TestDevice(), *workspace,
                          {{first.view(), second.view()}, {bias.data(), nullptr}}, Mode::kFast)
            .value();
    const auto multiply = [&](int64_t from, int64_t rows) {
      LinearArgs args{};
      args.linear = linear.get();
      args.in.count = 1;
      args.in.views[0] = {
          {DType::kI8, kWholeRow}, kCols, x.data() + from * kCols, scales.data() + from, nullptr};
      args.rows = rows;
      std::vector<OnDevice<uint8_t>> out;
      for (size_t i = 0; i < outs.size(); ++i) {
        out.push_back(
            OnDevice<uint8_t>::Poisoned(static_cast<size_t>(rows * outs[i]) * BytesOf(type)));
        args.out[i] = {out[i].data(), type};
      }
      EXPECT_TRUE(RunCudaLinear(TestDevice(), *workspace, args).ok());
      return std::array{out[0].Read(), out[1].Read()};
    };
    const auto all = multiply(0, kRows);
    for (const int64_t from : {0, 63, 500, 590}) {
      const auto some = multiply(from, 11);
      for (size_t i = 0; i < outs.size(); ++i) {
        const auto begin = all[i].begin() + from * outs[i] * static_cast<int64_t>(BytesOf(type));
        EXPECT_TRUE(std::equal(some[i].begin(), some[i].end(), begin)) << from << ", weight " << i;
      }
    }
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
  const Int8Weight weight(view);
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
  const Int8Weight on_device(weight.view());
  const Int8Tokens tokens(2, 64, 2);
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
