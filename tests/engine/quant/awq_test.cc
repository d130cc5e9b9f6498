// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/quant/algorithm.h"
#include "tests/engine/quant/random_matrix.h"

namespace nibble {
namespace {

using testing::HessianOf;
using testing::Objective;
using testing::RandomInputs;
using testing::RandomMatrix;

const Scheme& Named(std::string_view name) { return *FindScheme(name); }

InputStatistics StatisticsOf(const Matrix& x) {
  InputStatistics s;
  s.hessian = HessianOf(x);
  s.mean_abs.assign(static_cast<size_t>(x.cols), 0.0f);
  s.max_abs.assign(static_cast<size_t>(x.cols), 0.0f);
  for (int64_t t = 0; t < x.rows; ++t) {
    for (size_t j = 0; j < s.mean_abs.size(); ++j) {
      const float a = std::fabs(x.row(t)[j]);
      s.mean_abs[j] += a / static_cast<float>(x.rows);
      s.max_abs[j] = std::max(s.max_abs[j], a);
    }
  }
  return s;
}

// Output error after rounding W diag(s) to nearest.
double OutputError(const Matrix& w, const Scheme& scheme, const std::vector<float>& s,
                   const Matrix& h) {
  Matrix scaled = w;
  for (int64_t n = 0; n < w.rows; ++n) {
    for (size_t j = 0; j < s.size(); ++j) scaled.row(n)[j] *= s[j];
  }
  Matrix q = NearestValues(scaled, scheme, AbsmaxScales(scaled, scheme, 1), 1);
  double sum = 0;
  for (int64_t n = 0; n < w.rows; ++n) {
    for (size_t j = 0; j < s.size(); ++j) q.row(n)[j] /= s[j];
    sum += Objective(w.row(n), q.row(n), h);
  }
  return sum;
}

TEST(Awq, LowersTheOutputErrorWhenSomeInputsAreLarge) {
  const Matrix w = RandomMatrix(48, 128, 41);
  const InputStatistics input = StatisticsOf(RandomInputs(400, 128, 42));
  const AwqOptions awq;
  const SmoothQuantOptions smoothquant;
  const Scheme& scheme = Named("int4-g128");
  const TransformProblem problem{{&w}, {&scheme}, &input, &awq, &smoothquant, 1};
  const std::vector<float> s = *ScaleAwq(problem);
  ASSERT_EQ(s.size(), 128u);
  for (const float factor : s) EXPECT_GT(factor, 0.0f);
  EXPECT_GT(s[3], s[4]);  // feature 3 is twelve times larger
  const double plain = OutputError(w, scheme, std::vector<float>(128, 1.0f), input.hessian);
  EXPECT_LT(OutputError(w, scheme, s, input.hessian), 0.8 * plain);
}

TEST(Awq, JudgesALargeLinearByRowsFromAllOverIt) {
  // Every row three times: one of each is what an even choice of 512 of the 1536 rows finds.
  const Matrix kinds = RandomMatrix(512, 64, 51);
  Matrix w(1536, 64);
  for (int64_t n = 0; n < w.rows; ++n) {
    std::copy(kinds.row(n / 3), kinds.row(n / 3) + w.cols, w.row(n));
  }
  const InputStatistics input = StatisticsOf(RandomInputs(300, 64, 52));
  const AwqOptions awq;
  const SmoothQuantOptions smoothquant;
  const Scheme& scheme = Named("int4-g64");
  const auto factors = [&](const Matrix& weight) {
    return *ScaleAwq(TransformProblem{{&weight}, {&scheme}, &input, &awq, &smoothquant, 2});
  };
  const std::vector<float> some = factors(kinds);
  const std::vector<float> all = factors(w);
  ASSERT_EQ(all.size(), 64u);
  for (size_t j = 0; j < 64; ++j) EXPECT_NEAR(all[j], some[j], 1e-5f * some[j]);
  const double plain = OutputError(w, scheme, std::vector<float>(64, 1.0f), input.hessian);
  EXPECT_LT(OutputError(w, scheme, all, input.hessian), 0.9 * plain);
}

TEST(Awq, GivesTheSameFactorsForAnyThreads) {
  const Matrix w = RandomMatrix(100, 64, 43);
  const Matrix v = RandomMatrix(30, 64, 44);
  const InputStatistics input = StatisticsOf(RandomInputs(200, 64, 45));
  const AwqOptions awq;
  const SmoothQuantOptions smoothquant;
  const Scheme& scheme = Named("int4-g32-asym");
  TransformProblem problem{{&w, &v}, {&scheme, &scheme}, &input, &awq, &smoothquant, 1};
  const std::vector<float> one = *ScaleAwq(problem);
  for (const int threads : {2, 7}) {
    problem.threads = threads;
    EXPECT_EQ(*ScaleAwq(problem), one);
  }
}

TEST(Awq, KeepsInputsThatWereAlwaysZeroAtOne) {
  const Matrix w = RandomMatrix(16, 64, 46);
  Matrix x = RandomInputs(200, 64, 47);
  for (int64_t t = 0; t < x.rows; ++t) x.at(t, 9) = 0;
  const InputStatistics input = StatisticsOf(x);
  const AwqOptions awq;
  const SmoothQuantOptions smoothquant;
  const Scheme& scheme = Named("int4-g64");
  const std::vector<float> s =
      *ScaleAwq(TransformProblem{{&w}, {&scheme}, &input, &awq, &smoothquant, 1});
  ASSERT_EQ(s.size(), 64u);
  EXPECT_EQ(s[9], 1.0f);
}

TEST(AwqClip, IsNeverWorseThanTheWholeRangeInAnyGroup) {
  const GptqOptions gptq;
  constexpr int64_t kCols = 128;
  const Matrix w = RandomMatrix(24, kCols, 48);
  const Matrix h = HessianOf(RandomInputs(300, kCols, 49));
  for (const std::string_view name : {"int4-g32", "int4-g64-asym", "int8"}) {
    const Scheme& scheme = Named(name);
    const GroupScales clipped = *OutputClipScales({&w, &scheme, &h, nullptr, &gptq, 1});
    const Matrix q = NearestValues(w, scheme, clipped, 1);
    const Matrix wide = NearestValues(w, scheme, AbsmaxScales(w, scheme, 1), 1);
    const int64_t width = scheme.GroupWidth(kCols);
    bool better = false;
    for (int64_t first = 0; first < kCols; first += width) {
      Matrix part(width, width);
      for (int64_t i = 0; i < width; ++i) {
        for (int64_t j = 0; j < width; ++j) part.at(i, j) = h.at(first + i, first + j);
      }
      for (int64_t n = 0; n < w.rows; ++n) {
        const double own = Objective(w.row(n) + first, q.row(n) + first, part);
        const double other = Objective(w.row(n) + first, wide.row(n) + first, part);
        EXPECT_LE(own, other * (1 + 1e-4));
        better = better || own < 0.9 * other;
      }
    }
    EXPECT_TRUE(better) << name;
    for (const int threads : {2, 7}) {
      EXPECT_EQ(OutputClipScales({&w, &scheme, &h, nullptr, &gptq, threads})->scale, clipped.scale);
    }
  }
}

}  // namespace
}  // namespace nibble
