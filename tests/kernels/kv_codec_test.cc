// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/kernels/activations.h"
#include "tests/support/shapes.h"

namespace nibble {
namespace {

using testing::RandomFloats;

KvSpan SpanOf(const std::vector<float>& values) {
  KvSpan span;
  for (const float x : values) span = Merge(span, KvSpanOf(x));
  return span;
}

// Groups as they occur: of both signs, of one, far from zero, of one value, tiny and huge.
std::vector<std::vector<float>> Groups() {
  std::vector<std::vector<float>> groups;
  uint32_t seed = 1;
  for (const int64_t length : testing::kRowLengths) {
    for (const float center : {0.0f, 3.0f, -100.0f}) {
      for (const float deviation : {1.0f, 1e-3f, 1e-20f, 1e20f}) {
        groups.push_back(RandomFloats(length, seed++, deviation));
        for (float& x : groups.back()) x += center;
      }
    }
  }
  groups.push_back({0.0f, 0.0f});
  groups.push_back({-0.0f, 0.0f});
  groups.push_back({2.7f, 2.7f, 2.7f});
  return groups;
}

TEST(KvSpanTest, KnowsTheEndsAndWhetherAllIsFiniteInAnyOrder) {
  const std::vector<float> values = {1.0f, -3.0f, 2.5f, 0.0f};
  const KvSpan left = Merge(Merge(KvSpanOf(1.0f), KvSpanOf(-3.0f)), SpanOf({2.5f, 0.0f}));
  for (const KvSpan& span : {SpanOf(values), left}) {
    EXPECT_EQ(span.low, -3.0f);
    EXPECT_EQ(span.high, 2.5f);
    EXPECT_EQ(KvAbsMax(span), 3.0f);
    EXPECT_TRUE(span.finite);
  }
  for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    EXPECT_FALSE(SpanOf({bad, 1.0f}).finite);
    EXPECT_FALSE(SpanOf({1.0f, bad}).finite);
    EXPECT_TRUE(std::isnan(KvInt8Scale(SpanOf({1.0f, bad}))));
    EXPECT_TRUE(std::isnan(DecodeKvInt4(3, KvInt4ScaleOf(SpanOf({1.0f, bad})))));
  }
}

TEST(KvFp8Test, EveryCodeIsTheNearestAndTheLargestValueTakesTheLargestCode) {
  for (const std::vector<float>& group : Groups()) {
    const KvSpan span = SpanOf(group);
    const float scale = KvFp8Scale(span);
    const float inverse = KvFp8Inverse(span);
    for (const float x : group) {
      const uint8_t code = EncodeKvFp8(x, inverse);
      if (std::abs(x) == KvAbsMax(span) && x != 0.0f) {
        EXPECT_EQ(code, x < 0 ? 0xfe : 0x7e);
      }
      double nearest = HUGE_VAL;
      for (int other = 0; other < 256; ++other) {
        if ((other & 0x7f) == 0x7f) continue;  // NaN
        const double value = double{E4M3ToF32(static_cast<uint8_t>(other))} * scale;
        nearest = std::min(nearest, std::abs(value - x));
      }
      ASSERT_LE(std::abs(double{E4M3ToF32(code)} * scale - x), nearest + 2.4e-7 * std::abs(x)) << x;
    }
  }
  EXPECT_EQ(KvFp8Scale(SpanOf({0.0f, -0.0f})), 0.0f);
  EXPECT_TRUE(std::isnan(KvFp8Scale(SpanOf({1.0f, HUGE_VALF}))));
  const KvSpan tiny = SpanOf({1e-40f, 0.0f});
  EXPECT_EQ(EncodeKvFp8(0.0f, KvFp8Inverse(tiny)), 0) << "not 0 times infinity";
}

TEST(KvInt4Test, EveryCodeIsTheNearestOfTheSixteenStoredValues) {
  for (const std::vector<float>& group : Groups()) {
    const KvInt4Scale scale = KvInt4ScaleOf(SpanOf(group));
    const float inverse = KvInt4Inverse(scale);
    const double step = BF16ToF32(scale.scale);
    for (const float x : group) {
      const uint8_t code = EncodeKvInt4(x, BF16ToF32(scale.low), inverse);
      ASSERT_LE(code, 15);
      double nearest = HUGE_VAL;
      for (uint8_t other = 0; other < 16; ++other) {
        nearest = std::min(nearest, std::abs(double{DecodeKvInt4(other, scale)} - x));
      }
      // Near the middle of two values the rounding of the quotient may take the other one, and the
      // values themselves are rounded to f32.
      const double slack = 1e-6 * step + 2.4e-7 * std::abs(x);
      ASSERT_LE(std::abs(double{DecodeKvInt4(code, scale)} - x), nearest + slack)
          << x << " in a group of " << group.size();
    }
  }
}

TEST(KvInt4Test, TheSixteenValuesReachFromTheLowestToTheHighest) {
  for (const std::vector<float>& group : Groups()) {
    const KvSpan span = SpanOf(group);
    const KvInt4Scale scale = KvInt4ScaleOf(span);
    // bf16 keeps eight bits: the ends are met to 2^-9 of the value and of the range.
    const double slack = (std::max(std::abs(double{span.low}), std::abs(double{span.high})) * 2 +
                          (double{span.high} - span.low)) /
                             512 +
                         1e-37;
    EXPECT_NEAR(DecodeKvInt4(0, scale), span.low, slack);
    EXPECT_NEAR(DecodeKvInt4(15, scale), span.high, slack);
  }
}

TEST(KvInt4Test, TiesGoToEvenAndWhatIsOutsideIsClamped) {
  const KvInt4Scale scale{F32ToBF16(2.0f), F32ToBF16(-10.0f)};
  const float inverse = KvInt4Inverse(scale);
  for (int code = 0; code < 16; ++code) {
    const auto exact = static_cast<float>(2 * code - 10);
    EXPECT_EQ(DecodeKvInt4(static_cast<uint8_t>(code), scale), exact);
    EXPECT_EQ(EncodeKvInt4(exact, -10.0f, inverse), code);
    EXPECT_EQ(EncodeKvInt4(exact + 1, -10.0f, inverse), std::min(15, code + code % 2));
    EXPECT_EQ(EncodeKvInt4(exact + 0.99f, -10.0f, inverse), code);
  }
  EXPECT_EQ(EncodeKvInt4(-1e30f, -10.0f, inverse), 0);
  EXPECT_EQ(EncodeKvInt4(1e30f, -10.0f, inverse), 15);
  EXPECT_EQ(EncodeKvInt4(std::nanf(""), -10.0f, inverse), 0);
}

TEST(KvInt4Test, AGroupOfOneValueIsThatValueInBf16) {
  for (const float x : {0.0f, 2.7f, -3e-30f, 1e30f}) {
    const KvInt4Scale scale = KvInt4ScaleOf(SpanOf({x, x}));
    const uint8_t code = EncodeKvInt4(x, BF16ToF32(scale.low), KvInt4Inverse(scale));
    EXPECT_NEAR(DecodeKvInt4(code, scale), x, std::abs(x) / 512);
  }
  EXPECT_EQ(KvInt4ScaleOf(SpanOf({-0.0f, 0.0f})).low, 0) << "one bit pattern for zero";
}

}  // namespace
}  // namespace nibble
