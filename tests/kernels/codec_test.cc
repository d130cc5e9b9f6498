// SPDX-License-Identifier: Apache-2.0
#include "kernels/codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tests/kernels/random_weight.h"

namespace nibble {
namespace {

bool IsNaN16(uint16_t bits, uint16_t exponent, uint16_t mantissa) {
  return (bits & exponent) == exponent && (bits & mantissa) != 0;
}

TEST(F16Test, EveryBitPatternSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = F16ToF32(half);
    if (IsNaN16(half, 0x7c00, 0x3ff)) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_TRUE(IsNaN16(F32ToF16(value), 0x7c00, 0x3ff));
      continue;
    }
    ASSERT_EQ(F32ToF16(value), half);
    const int exponent = (half >> 10) & 31;
    const double magnitude = exponent == 31  ? std::numeric_limits<double>::infinity()
                             : exponent == 0 ? std::ldexp(half & 0x3ff, -24)
                                             : std::ldexp(1024 + (half & 0x3ff), exponent - 25);
    ASSERT_EQ(value, (half & 0x8000) != 0 ? -magnitude : magnitude);
  }
}

TEST(F16Test, HalfwayBetweenNeighboursRoundsToTheEvenOne) {
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const auto low = static_cast<uint16_t>(bits);
    const auto high = static_cast<uint16_t>(bits + 1);
    const float middle = (F16ToF32(low) + F16ToF32(high)) / 2;  // exact in float
    ASSERT_EQ(F32ToF16(middle), bits % 2 == 0 ? low : high);
    ASSERT_EQ(F32ToF16(std::nextafter(middle, 0.0f)), low);
    ASSERT_EQ(F32ToF16(std::nextafter(middle, 1e9f)), high);
    ASSERT_EQ(F32ToF16(-middle), (bits % 2 == 0 ? low : high) | 0x8000);
  }
  EXPECT_EQ(F32ToF16(65519.9f), 0x7bff);
  EXPECT_EQ(F32ToF16(65520.0f), 0x7c00);
}

TEST(BF16Test, EveryBitPatternSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    if (IsNaN16(half, 0x7f80, 0x7f)) {
      EXPECT_TRUE(IsNaN16(F32ToBF16(BF16ToF32(half)), 0x7f80, 0x7f));
      continue;
    }
    ASSERT_EQ(F32ToBF16(BF16ToF32(half)), half);
  }
}

TEST(BF16Test, HalfwayBetweenNeighboursRoundsToTheEvenOne) {
  for (uint32_t bits = 0; bits < 0x7f7f; ++bits) {
    const uint32_t middle = (bits << 16) | 0x8000u;
    ASSERT_EQ(F32ToBF16(std::bit_cast<float>(middle)), bits % 2 == 0 ? bits : bits + 1);
    ASSERT_EQ(F32ToBF16(std::bit_cast<float>(middle - 1)), bits);
    ASSERT_EQ(F32ToBF16(std::bit_cast<float>(middle + 1)), bits + 1);
  }
}

// The definition of the format, in double: 1 sign, 4 exponent and 3 mantissa bits.
double E4M3Value(int code) {
  const int exponent = (code >> 3) & 15;
  const double magnitude =
      exponent == 0 ? std::ldexp(code & 7, -9) : std::ldexp(8 + (code & 7), exponent - 10);
  return code >= 0x80 ? -magnitude : magnitude;
}

TEST(E4M3Test, EveryCodeHasTheValueOfTheFormatAndEncodesToItself) {
  for (int i = 0; i < 256; ++i) {
    const auto code = static_cast<uint8_t>(i);
    const float value = E4M3ToF32(code);
    EXPECT_EQ(F32ToE4M3(value), code);
    EXPECT_EQ(std::signbit(value), i >= 0x80) << "-0 keeps its sign";
    if ((i & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
    } else {
      EXPECT_EQ(static_cast<double>(value), E4M3Value(i));
    }
  }
  EXPECT_EQ(E4M3ToF32(0x7e), kMaxE4M3);
}

TEST(E4M3Test, HalfwayBetweenNeighboursRoundsToTheEvenOne) {
  for (int i = 0; i < 0x7e; ++i) {
    const auto low = static_cast<uint8_t>(i);
    const auto high = static_cast<uint8_t>(i + 1);
    const auto middle = static_cast<float>((E4M3Value(i) + E4M3Value(i + 1)) / 2);  // exact
    const uint8_t even = i % 2 == 0 ? low : high;
    EXPECT_EQ(F32ToE4M3(middle), even) << i;
    EXPECT_EQ(F32ToE4M3(-middle), even | 0x80) << i;
    EXPECT_EQ(F32ToE4M3(std::nextafter(middle, 0.0f)), low) << i;
    EXPECT_EQ(F32ToE4M3(std::nextafter(middle, 1e9f)), high) << i;
  }
}

TEST(E4M3Test, LargerValuesSaturateAndNaNStays) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float value : {448.0f, 456.0f, 464.0f, 465.0f, 480.0f, 512.0f, 1e30f, kInfinity}) {
    EXPECT_EQ(F32ToE4M3(value), 0x7e) << value;
    EXPECT_EQ(F32ToE4M3(-value), 0xfe) << value;
  }
  EXPECT_EQ(F32ToE4M3(std::nanf("")), 0x7f);
  EXPECT_EQ(F32ToE4M3(-std::nanf("")), 0xff);
  EXPECT_EQ(F32ToE4M3(1e-45f), 0x00);
  EXPECT_EQ(F32ToE4M3(-1e-45f), 0x80);
}

TEST(E4M3Test, CodesOfASpanLieWithinHalfAStepAndReachTheEnds) {
  for (const float absmax : {1.0f, 3.7f, 1e-29f, 1e30f}) {
    const float scale = E4M3Scale(absmax);
    const float inverse = E4M3InverseScale(absmax);
    EXPECT_EQ(F32ToE4M3(absmax * inverse), 0x7e);
    EXPECT_EQ(F32ToE4M3(-absmax * inverse), 0xfe);
    for (int i = -1000; i <= 1000; ++i) {
      const float x = absmax * static_cast<float>(i) / 1000.0f;
      const float value = E4M3ToF32(F32ToE4M3(x * inverse)) * scale;
      // Half of 2^-3 of its size, or half of the smallest value.
      ASSERT_LE(std::abs(x - value), std::max(std::abs(x) / 16, scale / 1024) * 1.0001f);
    }
  }
  for (const float absmax : {0.0f, 1e-40f}) EXPECT_EQ(F32ToE4M3(E4M3InverseScale(absmax)), 0);
}

// The distribution function of the normal distribution.
double Phi(double z) { return 0.5 * std::erfc(-z / std::sqrt(2.0)); }

TEST(NF4Test, ValuesAreTheQuantilesOfTheNormalDistribution) {
  // QLoRA: quantiles of evenly spaced probabilities, eight from 1/2 up to p and seven down to 1 - p
  // with the 0 between them, divided by the largest; p = 1 - (1/30 + 1/32) / 2 as in bitsandbytes,
  // which writes 0.9677083.
  constexpr double kP = 0.9677083;
  double low = 0;
  double high = 4;
  for (int i = 0; i < 100; ++i) (Phi((low + high) / 2) < kP ? low : high) = (low + high) / 2;
  for (int i = 0; i < 16; ++i) {
    const double steps = i < kNF4Zero ? 7 : 8;
    const double probability = 0.5 + (kP - 0.5) * (i - kNF4Zero) / steps;
    EXPECT_NEAR(Phi(NF4ToF32(i) * low), probability, 1e-7) << i;
  }
  EXPECT_EQ(NF4ToF32(0), -1.0f);
  EXPECT_EQ(NF4ToF32(kNF4Zero), 0.0f);
  EXPECT_EQ(NF4ToF32(15), 1.0f);
}

TEST(NF4Test, EveryCodeEncodesToItselfAndHalfwayGoesDown) {
  for (int i = 0; i < 16; ++i) EXPECT_EQ(F32ToNF4(NF4ToF32(i)), i);
  for (int i = 0; i < 15; ++i) {
    const float middle = (NF4ToF32(i) + NF4ToF32(i + 1)) * 0.5f;
    EXPECT_EQ(F32ToNF4(middle), i);
    EXPECT_EQ(F32ToNF4(std::nextafter(middle, -2.0f)), i);
    EXPECT_EQ(F32ToNF4(std::nextafter(middle, 2.0f)), i + 1);
  }
  EXPECT_EQ(F32ToNF4(-0.0f), kNF4Zero);
  for (const float beyond : {1.5f, 1e30f, std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(F32ToNF4(beyond), 15);
    EXPECT_EQ(F32ToNF4(-beyond), 0);
  }
  EXPECT_EQ(F32ToNF4(std::nanf("")), 0);
}

TEST(Dynamic8Test, ValuesAreThoseOfTheMapOfBitsandbytes) {
  std::vector<double> map = {0.0, 1.0};
  for (int i = 0; i < 7; ++i) {
    const int parts = 1 << i;
    for (int j = 0; j < parts; ++j) {
      const double centre = 0.1 + 0.9 * (j + 0.5) / parts;
      map.push_back(centre * std::pow(10.0, i - 6));
      map.push_back(-centre * std::pow(10.0, i - 6));
    }
  }
  std::sort(map.begin(), map.end());
  ASSERT_EQ(map.size(), 256u);
  for (int i = 0; i < 256; ++i) {
    const double value = map[static_cast<size_t>(i)];
    EXPECT_NEAR(Dynamic8ToF32(static_cast<uint8_t>(i)), value, std::abs(value) * 0x1p-24) << i;
  }
}

TEST(Dynamic8Test, EveryCodeEncodesToItselfAndHalfwayGoesDown) {
  for (int i = 0; i < 256; ++i) EXPECT_EQ(F32ToDynamic8(Dynamic8ToF32(static_cast<uint8_t>(i))), i);
  for (int i = 0; i < 255; ++i) {
    const float middle =
        (Dynamic8ToF32(static_cast<uint8_t>(i)) + Dynamic8ToF32(static_cast<uint8_t>(i + 1))) *
        0.5f;
    EXPECT_EQ(F32ToDynamic8(middle), i);
    EXPECT_EQ(F32ToDynamic8(std::nextafter(middle, 2.0f)), i + 1);
  }
  EXPECT_EQ(F32ToDynamic8(2.0f), 255);
  EXPECT_EQ(F32ToDynamic8(-2.0f), 0);
  EXPECT_EQ(F32ToDynamic8(std::nanf("")), 0);
}

TEST(EncodeWeightTest, GivesTheNearestValueOfTheGridOfEveryScheme) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (const Scheme& scheme : kSchemes) {
    if (!scheme.quantized()) continue;
    const int zero = scheme.symmetric() ? 0 : scheme.code_min() + 1;
    const auto scale = static_cast<float>(3.0 / scheme.span());
    for (int i = 0; i < 500; ++i) {
      const float w = normal(random);
      const float own = DecodeWeight(scheme, EncodeWeight(scheme, w, scale, zero), scale, zero);
      for (int code = scheme.code_min(); code <= scheme.code_max(); ++code) {
        const float other = DecodeWeight(scheme, code, scale, zero);
        if (std::isnan(other)) continue;
        ASSERT_LE(std::abs(w - own), std::abs(w - other) + 1e-6f) << scheme.name << ", " << w;
      }
    }
    const int of_zero = EncodeWeight(scheme, 5.0f, 0.0f, zero);
    EXPECT_EQ(DecodeWeight(scheme, of_zero, 1.0f, zero), 0.0f) << scheme.name;
  }
}

TEST(IntCodeTest, EveryCodeOfEveryWidthAndZeroPointDecodesToWhatEncodesToIt) {
  for (int bits = 1; bits <= 8; ++bits) {
    const int low = -(1 << (bits - 1));
    const int high = (1 << (bits - 1)) - 1;
    for (const float scale : {1.0f, RoundToBF16(0.0137f), RoundToBF16(3.3e-5f)}) {
      for (int zero = low; zero <= high; ++zero) {
        for (int code = low; code <= high; ++code) {
          ASSERT_EQ(EncodeInt(DecodeInt(code, scale, zero), scale, zero, low, high), code);
        }
      }
    }
  }
}

TEST(IntCodeTest, ValuesOutsideTheRangeAndNaNAreClamped) {
  EXPECT_EQ(EncodeInt(100.0f, 1.0f, 0, -8, 7), 7);
  EXPECT_EQ(EncodeInt(-100.0f, 1.0f, 0, -8, 7), -8);
  EXPECT_EQ(EncodeInt(1e30f, 1e-30f, 0, -8, 7), 7);
  EXPECT_EQ(EncodeInt(std::nanf(""), 1.0f, 0, -8, 7), -8);
  EXPECT_EQ(EncodeInt(3.0f, 0.0f, 2, -8, 7), 2) << "scale 0 is a group of zeros";
  EXPECT_EQ(EncodeInt(2.5f, 1.0f, 0, -8, 7), 2) << "ties go to even";
  EXPECT_EQ(EncodeInt(3.5f, 1.0f, 0, -8, 7), 4);
}

TEST(BitStreamTest, EveryWidthHoldsEveryCodeAcrossWordBoundaries) {
  std::mt19937 random(1);
  for (int bits = 1; bits <= 8; ++bits) {
    const int64_t count = 1000;
    std::vector<uint32_t> codes;
    for (int64_t i = 0; i < count; ++i) {
      codes.push_back(i < 256 ? static_cast<uint32_t>(i) & ((1u << bits) - 1)
                              : random() & ((1u << bits) - 1));
    }
    std::vector<uint32_t> words(static_cast<size_t>(PackedWords(count, bits)), 0);
    for (int64_t i = 0; i < count; ++i)
      WriteBits(words.data(), i, bits, codes[static_cast<size_t>(i)]);
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(ReadBits(words.data(), i, bits), codes[static_cast<size_t>(i)])
          << bits << " bits, element " << i;
    }
    // LSB first: the stream is one long little-endian number.
    for (int64_t i = 0; i < count; ++i) {
      for (int b = 0; b < bits; ++b) {
        const int64_t bit = i * bits + b;
        ASSERT_EQ((words[static_cast<size_t>(bit / 32)] >> (bit % 32)) & 1u,
                  (codes[static_cast<size_t>(i)] >> b) & 1u);
      }
    }
  }
}

TEST(Int8Test, CodesOfASpanLieWithinHalfAStepAndReachTheEnds) {
  for (const float absmax : {1.0f, 3.7f, 1e-30f, 1e30f}) {
    EXPECT_EQ(EncodeInt8(absmax, Int8InverseScale(absmax)), 127);
    EXPECT_EQ(EncodeInt8(-absmax, Int8InverseScale(absmax)), -127);
    for (int i = -1000; i <= 1000; ++i) {
      const float x = absmax * static_cast<float>(i) / 1000.0f;
      const float scale = Int8Scale(absmax);
      ASSERT_LE(std::abs(x - static_cast<float>(EncodeInt8(x, Int8InverseScale(absmax))) * scale),
                0.5001f * scale);
    }
  }
  EXPECT_EQ(Int8Scale(0.0f), 0.0f);
  EXPECT_EQ(EncodeInt8(0.0f, Int8InverseScale(0.0f)), 0);
  EXPECT_EQ(EncodeInt8(0.0f, Int8InverseScale(1e-40f)), -127) << "as the vector kernels do";
  EXPECT_EQ(EncodeInt8(std::nanf(""), 1.0f), -127);
}

TEST(FindOutlierTest, GivesThePlaceInTheListOrMinusOne) {
  const std::vector<int32_t> features = {0, 3, 4, 90, 91};
  for (int64_t count = 0; count <= 5; ++count) {
    for (int32_t k = 0; k < 100; ++k) {
      const auto end = features.begin() + count;
      const auto found = std::find(features.begin(), end, k);
      EXPECT_EQ(FindOutlier(features.data(), count, k),
                found == end ? -1 : found - features.begin())
          << k << " of " << count;
    }
  }
}

TEST(ReadWeightTest, IsTheValueOfTheCodeTimesTheScaleOfTheGroupForEveryScheme) {
  for (const Scheme& scheme : kSchemes) {
    const testing::RandomWeight weight(scheme, 35, 172, 3);
    const WeightView& w = weight.view();
    for (int64_t n = 0; n < w.rows; ++n) {
      for (int64_t k = 0; k < w.cols; ++k) {
        if (!scheme.quantized()) continue;
        if (const int64_t j = FindOutlier(w.outlier_features, w.outliers, k); j >= 0) {
          ASSERT_EQ(ReadWeight(w, n, k), BF16ToF32(w.outlier_weights[n * w.outliers + j]));
          continue;
        }
        const int64_t groups = scheme.GroupsPerRow(w.cols);
        const int64_t g = k / scheme.GroupWidth(w.cols);
        const int64_t i = n * groups + g;
        const float scale = scheme.nested()
                                ? std::fma(Dynamic8ToF32(static_cast<const uint8_t*>(w.scales)[i]),
                                           w.nested[1 + i / 256], w.nested[0])
                                : BF16ToF32(static_cast<const uint16_t*>(w.scales)[i]);
        int zero = 0;
        if (!scheme.symmetric()) {
          for (int b = 0; b < scheme.bits(); ++b) {
            const int64_t bit = n * scheme.bits() + b;
            const uint32_t word = static_cast<const uint32_t*>(w.zeros)[bit / 32 * groups + g];
            zero |= static_cast<int>((word >> (bit % 32)) & 1u) << b;
          }
          zero -= 1 << (scheme.bits() - 1);
        }
        const int code = ReadCode(w, n, k);
        const float value = scheme.code == DType::kNF4      ? NF4ToF32(code)
                            : scheme.code == DType::kF8E4M3 ? E4M3ToF32(static_cast<uint8_t>(code))
                                                            : static_cast<float>(code - zero);
        ASSERT_EQ(ReadWeight(w, n, k), value * scale) << scheme.name;
      }
    }
  }
}

}  // namespace
}  // namespace nibble
