// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>

#include "engine/quant/algorithm.h"
#include "kernels/codec.h"
#include "tests/engine/quant/random_matrix.h"

namespace nibble {
namespace {

using testing::RandomInputs;
using testing::RandomMatrix;

const Scheme& W8A8() { return *FindScheme("w8a8"); }

InputStatistics StatisticsOf(const Matrix& x) {
  InputStatistics s;
  s.max_abs.assign(static_cast<size_t>(x.cols), 0.0f);
  for (int64_t t = 0; t < x.rows; ++t) {
    for (size_t j = 0; j < s.max_abs.size(); ++j) {
      s.max_abs[j] = std::max(s.max_abs[j], std::fabs(x.row(t)[j]));
    }
  }
  s.samples = x;
  return s;
}

// || Q(x / s) Q(W s)^T - x W^T ||^2 in double.
double Int8OutputError(const Matrix& w, const Matrix& x, const std::vector<float>& s) {
  Matrix scaled = w;
  for (int64_t n = 0; n < w.rows; ++n) {
    for (size_t j = 0; j < s.size(); ++j) scaled.row(n)[j] *= s[j];
  }
  const Matrix q = NearestValues(scaled, W8A8(), AbsmaxScales(scaled, W8A8(), 1), 1);
  double error = 0;
  for (int64_t t = 0; t < x.rows; ++t) {
    float absmax = 0;
    for (size_t j = 0; j < s.size(); ++j) absmax = std::max(absmax, std::fabs(x.row(t)[j] / s[j]));
    for (int64_t n = 0; n < w.rows; ++n) {
      double d = 0;
      for (size_t j = 0; j < s.size(); ++j) {
        const float rounded =
            static_cast<float>(EncodeInt8(x.row(t)[j] / s[j], Int8InverseScale(absmax))) *
            Int8Scale(absmax);
        d += static_cast<double>(rounded) * static_cast<double>(q.row(n)[j]) -
             static_cast<double>(x.row(t)[j]) * static_cast<double>(w.row(n)[j]);
      }
      error += d * d;
    }
  }
  return error;
}

TEST(SmoothQuant, WorkedByHand) {
  // max|x| = (100, 1, 4), max|w| = (1, 1, 0.25) over both linears, alpha = 1/2: s = sqrt(x / w).
  Matrix a(1, 3);
  a.values = {-1, 0.5f, 0.25f};
  Matrix b(1, 3);
  b.values = {0.5f, 1, -0.125f};
  InputStatistics input;
  input.max_abs = {100, 1, 4};
  const AwqOptions awq;
  SmoothQuantOptions options;
  options.alpha = 0.5;
  const std::vector<float> s =
      *ScaleSmoothQuant(TransformProblem{{&a, &b}, {&W8A8(), &W8A8()}, &input, &awq, &options, 1});
  EXPECT_EQ(s, (std::vector<float>{10, 1, 4}));
}

TEST(SmoothQuant, KeepsInputsAndWeightsThatAreZeroAtOne) {
  Matrix a(1, 3);
  a.values = {1, 0, 4};
  InputStatistics input;
  input.max_abs = {0, 5, 1};
  const AwqOptions awq;
  SmoothQuantOptions options;
  options.alpha = 0.5;
  const std::vector<float> s =
      *ScaleSmoothQuant(TransformProblem{{&a}, {&W8A8()}, &input, &awq, &options, 1});
  EXPECT_EQ(s, (std::vector<float>{1, 1, 0.5f}));
}

TEST(SmoothQuant, TheSearchedAlphaIsAtLeastAsGoodAsEveryFixedOneAndAsNone) {
  const Matrix w = RandomMatrix(32, 64, 51);
  const Matrix x = RandomInputs(40, 64, 52);
  const InputStatistics input = StatisticsOf(x);
  const AwqOptions awq;
  SmoothQuantOptions options;
  TransformProblem problem{{&w}, {&W8A8()}, &input, &awq, &options, 1};
  const std::vector<float> searched = *ScaleSmoothQuant(problem);
  ASSERT_EQ(searched.size(), 64u);
  const double best = Int8OutputError(w, x, searched);
  EXPECT_LT(best, 0.7 * Int8OutputError(w, x, std::vector<float>(64, 1.0f)));
  for (const double alpha : {0.25, 0.5, 0.75}) {
    options.alpha = alpha;
    EXPECT_LE(best, Int8OutputError(w, x, *ScaleSmoothQuant(problem)) * (1 + 1e-4)) << alpha;
  }
  options.alpha = -1;
  for (const int threads : {2, 7}) {
    problem.threads = threads;
    EXPECT_EQ(*ScaleSmoothQuant(problem), searched);
  }
}

}  // namespace
}  // namespace nibble
