// SPDX-License-Identifier: Apache-2.0
// Round to nearest and the clip search.
#include <gtest/gtest.h>

#include <cmath>

#include "engine/quant/algorithm.h"
#include "kernels/codec.h"
#include "tests/engine/quant/random_matrix.h"

namespace nibble {
namespace {

using testing::RandomMatrix;

const Scheme& Named(std::string_view name) { return *FindScheme(name); }

Matrix Row(std::vector<float> values) {
  Matrix m(1, static_cast<int64_t>(values.size()));
  m.values = std::move(values);
  return m;
}

double SquaredError(const Matrix& w, const Matrix& q) {
  double sum = 0;
  for (size_t i = 0; i < w.values.size(); ++i) {
    const double d = static_cast<double>(w.values[i]) - static_cast<double>(q.values[i]);
    sum += d * d;
  }
  return sum;
}

TEST(SpanScale, SymmetricSpansFifteenSteps) {
  const float w[] = {0.5f, -7.5f, 3.0f};
  const ScaleAndZero s = SpanScale(w, 3, Named("int4-g128"), 1.0);
  EXPECT_EQ(s.scale, 1.0f);
  EXPECT_EQ(s.zero, 0);
  EXPECT_EQ(SpanScale(w, 3, Named("int4-g128"), 0.5).scale, 0.5f);
}

TEST(SpanScale, EightBitSpans255Steps) {
  const float w[] = {127.5f, -1.0f};
  EXPECT_EQ(SpanScale(w, 2, Named("int8"), 1.0).scale, 1.0f);
  EXPECT_EQ(SpanScale(w, 2, Named("w8a8"), 1.0).scale, 1.0f);
}

TEST(SpanScale, FewBitsAndOtherGridsReachTheLargestWeight) {
  const float w[] = {1.0f, -7.0f, 0.0f};
  EXPECT_EQ(SpanScale(w, 3, Named("int3-g128"), 1.0).scale, 2.0f) << "7 steps, half on each side";
  EXPECT_EQ(SpanScale(w, 3, Named("int2-g64"), 0.75).scale, 3.5f) << "3 steps";
  EXPECT_EQ(SpanScale(w, 3, Named("fp8"), 1.0).scale, 7.0f / 448);
  EXPECT_EQ(SpanScale(w, 3, Named("nf4"), 1.0).scale, 7.0f);
  const float odd[] = {0.0f, 1.00390625f};
  EXPECT_EQ(SpanScale(odd, 2, Named("nf4-dq"), 1.0).scale, 1.00390625f) << "rounded when stored";
}

TEST(SpanScale, AsymmetricContainsZero) {
  const float positive[] = {3.0f, 7.5f};  // the range is 0..7.5
  ScaleAndZero s = SpanScale(positive, 2, Named("int4-g128-asym"), 1.0);
  EXPECT_EQ(s.scale, 0.5f);
  EXPECT_EQ(s.zero, -8);
  const float mixed[] = {-2.0f, 5.5f};
  s = SpanScale(mixed, 2, Named("int4-g128-asym"), 1.0);
  EXPECT_EQ(s.scale, 0.5f);
  EXPECT_EQ(s.zero, -4);
  const float negative[] = {-7.5f, -3.0f};
  s = SpanScale(negative, 2, Named("int4-g128-asym"), 1.0);
  EXPECT_EQ(s.scale, 0.5f);
  EXPECT_EQ(s.zero, 7);
}

TEST(SpanScale, IsRoundedToItsStoredTypeBeforeTheZeroPointIsChosen) {
  const float w[] = {-1.0f, 0.1f};
  const ScaleAndZero s = SpanScale(w, 2, Named("int4-g128-asym"), 1.0);
  EXPECT_EQ(s.scale, RoundToBF16(1.1f / 15));
  EXPECT_EQ(s.zero, static_cast<int>(std::nearbyint(-8 + 1.0 / static_cast<double>(s.scale))));
}

TEST(SpanScale, OfZerosIsZero) {
  const float w[] = {0.0f, -0.0f};
  EXPECT_EQ(SpanScale(w, 2, Named("int4-g128"), 1.0).scale, 0.0f);
  EXPECT_EQ(SpanScale(w, 2, Named("int4-g128-asym"), 1.0).scale, 0.0f);
}

TEST(SpanScale, SurvivesTheLargestFloats) {
  const float w[] = {-3e38f, 3e38f};
  EXPECT_TRUE(std::isfinite(SpanScale(w, 2, Named("int4-g128-asym"), 1.0).scale));
  EXPECT_TRUE(std::isfinite(SpanScale(w, 2, Named("int4-g128"), 1.0).scale));
}

TEST(RoundRtn, WorkedByHand) {
  // Scale 1: halves go to the even code, the largest positive weight is cut to 7.
  std::vector<float> w(32, 0.0f);
  w[0] = 7.5f;
  w[1] = -7.5f;
  w[2] = 0.5f;
  w[3] = 1.5f;
  w[4] = -2.4f;
  const Matrix weight = Row(w);
  const GptqOptions gptq;
  const RoundingProblem problem{&weight, &Named("int4-g32"), nullptr, nullptr, &gptq, 1};
  const absl::StatusOr<QuantizedWeight> q = RoundRtn(problem);
  ASSERT_TRUE(q.ok());
  const WeightView view = q->view();
  EXPECT_EQ(ReadScale(view, 0, 0), 1.0f);
  EXPECT_EQ(ReadCode(view, 0, 0), 7);
  EXPECT_EQ(ReadCode(view, 0, 1), -8);
  EXPECT_EQ(ReadCode(view, 0, 2), 0);
  EXPECT_EQ(ReadCode(view, 0, 3), 2);
  EXPECT_EQ(ReadCode(view, 0, 4), -2);
}

TEST(RoundRtn, IsWithinHalfAStepOfEveryWeightOnIntegerGrids) {
  const Matrix w = RandomMatrix(9, 256, 5);
  for (const Scheme& scheme : kSchemes) {
    if (!scheme.quantized() || scheme.code == DType::kNF4 || scheme.code == DType::kF8E4M3) {
      continue;
    }
    const GroupScales scales = AbsmaxScales(w, scheme, 1);
    const Matrix q = NearestValues(w, scheme, scales, 1);
    EXPECT_EQ(Dequantize(RoundNearest(w, scheme, scales, 2).view(), 1).values, q.values);
    for (int64_t n = 0; n < w.rows; ++n) {
      for (int64_t k = 0; k < w.cols; ++k) {
        const auto g = static_cast<size_t>(n * scales.groups + k / scheme.GroupWidth(w.cols));
        // An asymmetric range moves by up to half a step when its zero point is rounded, and the
        // stored scale may be 2^-9 too small.
        const float steps = scheme.symmetric() ? 0.5f : 1.0f;
        EXPECT_LE(std::fabs(w.at(n, k) - q.at(n, k)), scales.scale[g] * (steps + 0.6f))
            << scheme.name;
        EXPECT_EQ(scales.scale[g], RoundToBF16(scales.scale[g]));
      }
    }
  }
}

TEST(RoundRtn, IsWithinHalfAGapOfEveryWeightOnOtherGrids) {
  const Matrix w = RandomMatrix(9, 256, 5);
  // Half of the widest gap of NF4 (-1 to -0.6962), and of e4m3 (256 to 448 in steps of 32), with
  // what rounding the scale adds.
  for (const auto& [name, gap] : {std::pair<const char*, float>("nf4", 0.1519f + 0.002f),
                                  {"nf4-dq", 0.1519f + 0.015f},
                                  {"fp8", 16.0f / 448 + 0.002f},
                                  {"fp8-w8a16", 16.0f / 448 + 0.002f}}) {
    const Scheme& scheme = Named(name);
    const GroupScales scales = AbsmaxScales(w, scheme, 1);
    const Matrix q = Dequantize(RoundNearest(w, scheme, scales, 2).view(), 1);
    if (!scheme.nested()) {
      EXPECT_EQ(q.values, NearestValues(w, scheme, scales, 1).values);
    }
    for (int64_t n = 0; n < w.rows; ++n) {
      for (int64_t k = 0; k < w.cols; ++k) {
        const auto g = static_cast<size_t>(n * scales.groups + k / scheme.GroupWidth(w.cols));
        const auto absmax = static_cast<float>(scales.scale[g] * scheme.span());
        EXPECT_LE(std::fabs(w.at(n, k) - q.at(n, k)), gap * absmax) << name;
      }
    }
  }
}

TEST(RoundRtn, NestedScalesAreChosenBeforeTheCodes) {
  // Groups whose scales the nested code moves: the codes are nearest under the stored scale.
  const Matrix w = RandomMatrix(40, 192, 6);
  const Scheme& scheme = Named("nf4-dq");
  const QuantizedWeight q = RoundNearest(w, scheme, AbsmaxScales(w, scheme, 1), 1);
  for (int64_t n = 0; n < w.rows; ++n) {
    for (int64_t k = 0; k < w.cols; ++k) {
      const float scale = ReadScale(q.view(), n, k / 64);
      ASSERT_EQ(ReadCode(q.view(), n, k), EncodeWeight(scheme, w.at(n, k), scale, 0));
    }
  }
}

TEST(MseClip, CutsAnOutlierWhenThatHelpsTheOthers) {
  std::vector<float> w;
  for (int i = 0; i < 128; ++i) w.push_back(0.53f * (i % 2 == 0 ? 1.0f : -1.0f));
  w[5] = -1.4f;
  const Matrix weight = Row(w);
  const Scheme& scheme = Named("int4-g128");
  const GroupScales wide = AbsmaxScales(weight, scheme, 1);
  const GroupScales narrow = MseClipScales(weight, scheme, nullptr, 1);
  EXPECT_LT(narrow.scale[0], wide.scale[0]);
  // Where the outlier is all that matters, the range stays wide enough for it.
  std::vector<float> importance(128, 0.0f);
  importance[5] = 1.0f;
  const GroupScales weighted = MseClipScales(weight, scheme, importance.data(), 1);
  const float kept = NearestValues(weight, scheme, weighted, 1).values[5];
  EXPECT_NEAR(kept, -1.4f, 0.02f);
}

TEST(MseClip, IsNeverWorseThanAbsmaxAndTheSameForAnyThreads) {
  const Matrix w = RandomMatrix(33, 256, 6);
  for (const std::string_view name : {"int4-g32", "int4-g128", "int4-g64-asym", "int8", "w8a8"}) {
    const Scheme& scheme = Named(name);
    const GroupScales one = MseClipScales(w, scheme, nullptr, 1);
    const double clipped = SquaredError(w, NearestValues(w, scheme, one, 1));
    const double plain = SquaredError(w, NearestValues(w, scheme, AbsmaxScales(w, scheme, 1), 1));
    EXPECT_LE(clipped, plain) << name;
    for (const int threads : {2, 7}) {
      const GroupScales other = MseClipScales(w, scheme, nullptr, threads);
      EXPECT_EQ(other.scale, one.scale);
      EXPECT_EQ(other.zero, one.zero);
    }
  }
}

TEST(Tables, ListEveryAlgorithmOnceUnderItsOwnName) {
  for (const Rounder rounder : {Rounder::kRtn, Rounder::kMse, Rounder::kGptq}) {
    EXPECT_EQ(Find(rounder).rounder, rounder);
  }
  for (const Transform transform : {Transform::kAwq, Transform::kSmoothQuant}) {
    EXPECT_EQ(Find(transform).transform, transform);
  }
}

}  // namespace
}  // namespace nibble
