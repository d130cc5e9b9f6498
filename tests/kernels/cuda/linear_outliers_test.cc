// SPDX-License-Identifier: Apache-2.0
// The product of LLM.int8() through the backend's own entry: against sums in double precision, and
// at its ends, where it is that of W8A8 and that of bf16.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/cuda/linear.h"
#include "tests/kernels/activations.h"
#include "tests/kernels/cuda/int8_product.h"
#include "tests/support/near.h"
#include "tests/support/shapes.h"

namespace nibble::testing {
namespace {

const Scheme& LlmInt8() { return *FindScheme("llm-int8"); }

// Tokens in the format of linears with `outliers` features of `cols` aside.
struct Tokens {
  Tokens(int64_t token_rows, int64_t columns, int32_t outliers)
      : rows(token_rows),
        cols(columns),
        count(outliers),
        int8(rows, cols, 7),
        codes(int8.codes),
        scales(int8.scales) {
    const std::vector<float> random = RandomFloats(rows * OutlierStride(count), 8, 10.0f);
    for (int64_t i = 0; i < rows * OutlierStride(count); ++i) {
      values.push_back(i % OutlierStride(count) < count ? F32ToBF16(random[static_cast<size_t>(i)])
                                                        : 0);
    }
    on_device = std::make_unique<OnDevice<uint16_t>>(values);
  }
  // Rows from `first` on.
  ActView View(const ActFormat& format, int64_t first) const {
    return {format,
            cols,
            codes.data() + first * cols,
            scales.data() + first,
            nullptr,
            on_device->data() + first * OutlierStride(count)};
  }
  float Outlier(int64_t row, int64_t i) const {
    return BF16ToF32(values[static_cast<size_t>(row * OutlierStride(count) + i)]);
  }
  int64_t rows, cols;
  int32_t count;
  Int8Tokens int8;
  OnDevice<int8_t> codes;
  OnDevice<float> scales;
  std::vector<uint16_t> values;
  std::unique_ptr<OnDevice<uint16_t>> on_device;
};

// The group's products of rows [first, first + rows), one after the other.
std::vector<uint8_t> Multiply(const LinearGroup& group, const Tokens& tokens, DType type,
                              int64_t first, int64_t rows) {
  const auto workspace = LinearWorkspace::Make(TestDevice()).value();
  const auto linear = PrepareCudaLinear(TestDevice(), *workspace, group, Mode::kFast).value();
  LinearArgs args{};
  args.linear = linear.get();
  args.rows = rows;
  for (const ActFormat& format : linear->formats) {
    args.in.views[static_cast<size_t>(args.in.count++)] = tokens.View(format, first);
  }
  std::vector<OnDevice<uint8_t>> out;
  for (size_t i = 0; i < group.weights.size(); ++i) {
    out.push_back(OnDevice<uint8_t>::Poisoned(static_cast<size_t>(rows * group.weights[i].rows) *
                                              BytesOf(type)));
    args.out[i] = {out[i].data(), type};
  }
  EXPECT_TRUE(RunCudaLinear(TestDevice(), *workspace, args).ok());
  std::vector<uint8_t> bytes;
  for (const OnDevice<uint8_t>& one : out) {
    const std::vector<uint8_t> own = one.Read();
    bytes.insert(bytes.end(), own.begin(), own.end());
  }
  return bytes;
}

TEST(CudaLinearOutliers, TheSumOfTheInt8PartAndTheOutliersRoundedOnce) {
  for (const LinearShape& shape : kLinearShapes) {
    for (const int64_t rows : {shape.rows, int64_t{17}, int64_t{65}}) {
      SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(shape.out) + " x " +
                   std::to_string(shape.in));
      const RandomWeight weight(LlmInt8(), shape.out, shape.in, 1);
      const WeightView& w = weight.view();
      const std::vector<float> bias = RandomFloats(shape.out, 3);
      const Tokens tokens(rows, shape.in, static_cast<int32_t>(w.outliers));
      const LinearGroup group{{w}, {bias.data()}};
      Emulator().schedule = Schedule::kDescending;
      const auto bytes = Multiply(group, tokens, DType::kF32, 0, rows);
      Emulator().schedule = Schedule::kAscending;
      EXPECT_EQ(Multiply(group, tokens, DType::kF32, 0, rows), bytes);
      const auto y = As<float>(bytes);
      EXPECT_EQ(As<uint16_t>(Multiply(group, tokens, DType::kBF16, 0, rows)), ToBF16(y));
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t n = 0; n < shape.out; ++n) {
          int32_t codes = 0;
          for (int64_t k = 0; k < shape.in; ++k) {
            codes += tokens.int8.codes[static_cast<size_t>(m * shape.in + k)] * ReadCode(w, n, k);
          }
          double sum =
              double{tokens.int8.scales[static_cast<size_t>(m)]} * ReadScale(w, n, 0) * codes;
          double magnitude = std::abs(sum) + std::abs(bias[static_cast<size_t>(n)]);
          sum += bias[static_cast<size_t>(n)];
          for (int64_t i = 0; i < w.outliers; ++i) {
            const double product =
                double{tokens.Outlier(m, i)} * BF16ToF32(w.outlier_weights[n * w.outliers + i]);
            sum += product;
            magnitude += std::abs(product);
          }
          ASSERT_TRUE(Near(y[static_cast<size_t>(m * shape.out + n)], sum,
                           SumTolerance(kEpsilonF32, w.outliers + 3, magnitude)))
              << m << ", " << n;
        }
      }
    }
  }
}

TEST(CudaLinearOutliers, ARowHasTheSameBitsHoweverManyThereAre) {
  constexpr int64_t kRows = 150, kCols = 208;
  const RandomWeight a(LlmInt8(), 70, kCols, 1), b(LlmInt8(), 33, kCols, 2);
  const Tokens tokens(kRows, kCols, static_cast<int32_t>(a.view().outliers));
  const auto multiply = [&](const RandomWeight& w, int64_t first, int64_t rows) {
    return Multiply({{w.view()}, {}}, tokens, DType::kF32, first, rows);
  };
  const auto all = multiply(a, 0, kRows);
  for (const auto& [first, rows] : {std::pair<int64_t, int64_t>{0, 1}, {149, 1}, {60, 40}}) {
    const auto some = multiply(a, first, rows);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin() + first * 70 * 4)) << first;
  }
  auto both = all;
  const auto other = multiply(b, 0, kRows);
  both.insert(both.end(), other.begin(), other.end());
  EXPECT_EQ(Multiply({{a.view(), b.view()}, {}}, tokens, DType::kF32, 0, kRows), both);
}

TEST(CudaLinearOutliers, WithoutAnyTheProductIsThatOfW8A8) {
  const RandomWeight none(LlmInt8(), 70, 96, 1, {});
  WeightView w8a8 = none.view();
  w8a8.scheme = &W8A8();
  for (const int64_t rows : {3, 40, 130}) {
    const Tokens tokens(rows, 96, 0);
    EXPECT_EQ(Multiply({{none.view()}, {}}, tokens, DType::kF32, 0, rows),
              Multiply({{w8a8}, {}}, tokens, DType::kF32, 0, rows));
  }
}

TEST(CudaLinearOutliers, LinearsOfOneInputShareAListIfTheirFeaturesAreTheSame) {
  const RandomWeight a(LlmInt8(), 40, 96, 1, {3, 50}), same(LlmInt8(), 33, 96, 2, {3, 50}),
      other(LlmInt8(), 7, 96, 3, {3, 51}), plain(W8A8(), 9, 96, 5);
  const auto formats = [](const LinearGroup& group) {
    const auto workspace = LinearWorkspace::Make(TestDevice()).value();
    return PrepareCudaLinear(TestDevice(), *workspace, group, Mode::kFast).value()->formats.size();
  };
  EXPECT_EQ(formats({{a.view(), same.view()}, {}}), 1u);
  EXPECT_EQ(formats({{a.view(), plain.view(), same.view()}, {}}), 2u);
  EXPECT_EQ(formats({{a.view(), other.view(), plain.view()}, {}}), 3u);
}

TEST(CudaLinearOutliers, AnInfiniteOneStaysInItsRow) {
  const RandomWeight weight(LlmInt8(), 33, 64, 1);
  Tokens tokens(20, 64, static_cast<int32_t>(weight.view().outliers));
  tokens.values[static_cast<size_t>(3 * OutlierStride(tokens.count))] = 0x7f80;
  tokens.on_device = std::make_unique<OnDevice<uint16_t>>(tokens.values);
  const auto y = As<float>(Multiply({{weight.view()}, {}}, tokens, DType::kF32, 0, 20));
  for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isfinite(y[i]), i / 33 != 3) << i;
}

}  // namespace
}  // namespace nibble::testing
