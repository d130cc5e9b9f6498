// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/quantized_weight.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/codec.h"
#include "tests/engine/quant/random_matrix.h"

namespace nibble {
namespace {

TEST(QuantizedWeight, PacksFourBitCodesLowestFirst) {
  QuantizedWeight w(*FindScheme("int4-g32"), 1, 32);
  GroupScales scales(1, 1);
  scales.scale[0] = 0.5f;
  w.SetScales(scales);
  std::vector<int8_t> codes(32, -8);  // stored as 0
  codes[0] = -7;                      // 1
  codes[1] = 7;                       // 15
  codes[8] = 0;                       // 8
  w.SetRow(0, codes.data());
  ASSERT_EQ(w.tensors().items[0].suffix, ".weight_packed");
  uint32_t words[4];
  std::memcpy(words, w.bytes(0).data(), sizeof(words));
  EXPECT_EQ(words[0], 0xf1u);
  EXPECT_EQ(words[1], 0x8u);
  int64_t shape[2];
  ASSERT_EQ(w.tensors().items[2].suffix, ".weight_shape");
  std::memcpy(shape, w.bytes(2).data(), sizeof(shape));
  EXPECT_EQ(shape[0], 1);
  EXPECT_EQ(shape[1], 32);
}

TEST(QuantizedWeight, ReadsBackWhatWasSetInEveryScheme) {
  for (const Scheme& scheme : kSchemes) {
    if (!scheme.quantized()) continue;
    constexpr int64_t kRows = 21;
    constexpr int64_t kCols = 256;
    const int64_t groups = scheme.GroupsPerRow(kCols);
    GroupScales scales(kRows, groups);
    for (size_t i = 0; i < scales.scale.size(); ++i) {
      scales.scale[i] = RoundToBF16(0.01f * static_cast<float>(i + 1));
      const int span = scheme.code_max() - scheme.code_min() + 1;
      scales.zero[i] = scheme.symmetric()
                           ? 0
                           : static_cast<int8_t>(static_cast<int>(i) % span + scheme.code_min());
    }
    QuantizedWeight w(scheme, kRows, kCols);
    w.SetScales(scales);
    const int span = scheme.code_max() - scheme.code_min() + 1;
    auto code = [&](int64_t n, int64_t k) {
      return static_cast<int8_t>(scheme.code_min() + (n * 7 + k) % span);
    };
    for (int64_t n = 0; n < kRows; ++n) {
      std::vector<int8_t> codes;
      for (int64_t k = 0; k < kCols; ++k) codes.push_back(code(n, k));
      w.SetRow(n, codes.data());
    }
    const WeightView view = w.view();
    const Matrix values = Dequantize(view, 2);
    for (int64_t n = 0; n < kRows; ++n) {
      for (int64_t k = 0; k < kCols; ++k) {
        const auto i = static_cast<size_t>(n * groups + k / scheme.GroupWidth(kCols));
        ASSERT_EQ(ReadCode(view, n, k), code(n, k)) << scheme.name;
        ASSERT_EQ(ReadZero(view, n, k / scheme.GroupWidth(kCols)), scales.zero[i]) << scheme.name;
        ASSERT_EQ(ReadScale(view, n, k / scheme.GroupWidth(kCols)), scales.scale[i]) << scheme.name;
        const float value = DecodeWeight(scheme, code(n, k), scales.scale[i], scales.zero[i]);
        if (std::isnan(value)) continue;
        ASSERT_EQ(values.at(n, k), value) << scheme.name;
      }
    }
  }
}

TEST(QuantizedWeight, StoresNestedScalesAsDeviationsFromTheirMean) {
  // 300 scales around 2: the second block of 256 deviates ten times less than the first.
  constexpr int64_t kRows = 300;
  QuantizedWeight w(*FindScheme("nf4-dq"), kRows, 64);
  GroupScales scales(kRows, 1);
  for (size_t i = 0; i < scales.scale.size(); ++i) {
    scales.scale[i] = 2.0f + (i < 256 ? 1.0f : 0.1f) * (i % 2 == 0 ? 1.0f : -1.0f);
  }
  const std::vector<float> wanted = scales.scale;
  w.SetScales(scales);
  const float* nested = w.view().nested;
  EXPECT_FLOAT_EQ(nested[0], 2.0f);
  EXPECT_FLOAT_EQ(nested[1], 1.0f);
  EXPECT_FLOAT_EQ(nested[2], 0.1f);
  ASSERT_EQ(w.tensors().items[3].suffix, ".weight_scale_nested");
  EXPECT_EQ(w.tensors().items[3].shape[0], 3);
  for (size_t i = 0; i < wanted.size(); ++i) {
    // 1 is a code; the one nearest to -1 is -0.99296875.
    EXPECT_NEAR(scales.scale[i], wanted[i], (i < 256 ? 1.0 : 0.1) * 0.0071) << i;
    EXPECT_EQ(scales.scale[i], ReadScale(w.view(), static_cast<int64_t>(i), 0)) << i;
  }
}

TEST(QuantizedWeight, StoresUnquantizedSchemesRounded) {
  Matrix w(1, 3);
  w.values = {1.0f, 1.00390625f, -3.5f};  // the middle one is half-way between two bf16 values
  const QuantizedWeight bf16 = QuantizedWeight::FromFloat(*FindScheme("bf16"), w);
  EXPECT_EQ(Dequantize(bf16.view(), 1).values, (std::vector<float>{1.0f, 1.0f, -3.5f}));
  const QuantizedWeight f32 = QuantizedWeight::FromFloat(*FindScheme("f32"), w);
  EXPECT_EQ(Dequantize(f32.view(), 1).values, w.values);
  const QuantizedWeight f16 = QuantizedWeight::FromFloat(*FindScheme("f16"), w);
  EXPECT_EQ(Dequantize(f16.view(), 1).values, w.values);
}

TEST(QuantizeSpan, HasTheBitsOfTheCodec) {
  const Scheme& symmetric = *FindScheme("int4-g32");
  const Scheme& asymmetric = *FindScheme("int4-g32-asym");
  const Scheme& bytes = *FindScheme("w8a8");
  const Scheme& narrow = *FindScheme("int2-g32-asym");
  const Scheme& nf4 = *FindScheme("nf4");
  const Scheme& e4m3 = *FindScheme("fp8");
  std::vector<float> w = {0.0f, -0.0f, 1e30f, -1e30f, 1e-30f, 3e38f};
  for (int i = -400; i <= 400; ++i) w.push_back(0.0625f * static_cast<float>(i));  // many ties
  for (const float value : testing::RandomMatrix(1, 1000, 3).values) w.push_back(value);
  const auto count = static_cast<int64_t>(w.size());
  std::vector<float> values(w.size());
  std::vector<int8_t> codes(w.size());
  for (const Scheme* scheme : {&symmetric, &asymmetric, &bytes, &narrow, &nf4, &e4m3}) {
    for (const float scale : {0.125f, 0.0712890625f, 1e-38f, 0.0f}) {
      for (const int zero : {-8, -3, 0, 1, 7}) {
        if (scheme->symmetric() && zero != 0) continue;
        if (zero < scheme->code_min() || zero > scheme->code_max()) continue;
        QuantizeSpan(w.data(), count, scale, zero, *scheme, values.data(), codes.data());
        for (size_t i = 0; i < w.size(); ++i) {
          const int code = EncodeWeight(*scheme, w[i], scale, zero);
          ASSERT_EQ(codes[i], code) << w[i] << " / " << scale << " + " << zero;
          ASSERT_EQ(values[i], DecodeWeight(*scheme, code, scale, zero));
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble
