// SPDX-License-Identifier: Apache-2.0
// The W8A8 product against its definition, to the bit.
#include <gtest/gtest.h>

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
