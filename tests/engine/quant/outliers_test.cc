// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "engine/quant/algorithm.h"
#include "kernels/codec.h"
#include "tests/engine/quant/random_matrix.h"

namespace nibble {
namespace {

using ::nibble::testing::RandomMatrix;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(FindOutliers, TakesTheFeaturesThatReachTheThreshold) {
  std::vector<float> max_abs(64, 1.0f);
  max_abs[3] = 6.0f;
  max_abs[40] = 100.0f;
  max_abs[41] = 5.9f;
  EXPECT_THAT(FindOutliers(max_abs, 6.0), ElementsAre(3, 40));
  EXPECT_THAT(FindOutliers(max_abs, 1e30), IsEmpty());
  EXPECT_THAT(FindOutliers({7.0f, 8.0f}, 6.0), IsEmpty()) << "fewer than 16 features";
}

TEST(FindOutliers, TakesTheLargestOneIn16OfThemAnd256AtMost) {
  std::vector<float> max_abs(64, 10.0f);
  max_abs[60] = 20.0f;
  max_abs[7] = 30.0f;
  EXPECT_THAT(FindOutliers(max_abs, 6.0), ElementsAre(0, 1, 7, 60)) << "of equals the first";
  EXPECT_EQ(FindOutliers(std::vector<float>(8192, 10.0f), 6.0).size(), 256u);
}

class RoundBesideOutliersTest : public ::testing::TestWithParam<Rounder> {};

TEST_P(RoundBesideOutliersTest, TheRestIsRoundedAsIfTheirInputsWereZeroAndTheyAreBF16) {
  const Matrix weight = RandomMatrix(21, 64, 1);
  Matrix loud = weight;  // Outliers larger than everything: they must not reach a scale.
  const std::vector<int32_t> features = {0, 17, 63};
  for (const int32_t k : features) {
    for (int64_t n = 0; n < loud.rows; ++n) loud.at(n, k) = 100.0f * weight.at(n, k);
  }
  Matrix inputs = RandomMatrix(200, 64, 2);
  Matrix silent = inputs;
  for (const int32_t k : features) {
    for (int64_t t = 0; t < inputs.rows; ++t) silent.at(t, k) = 0;
  }
  const auto hessian = [](const Matrix& x) {
    Matrix h(x.cols, x.cols);
    for (int64_t i = 0; i < x.cols; ++i) {
      for (int64_t j = 0; j < x.cols; ++j) {
        for (int64_t t = 0; t < x.rows; ++t) h.at(i, j) += x.at(t, i) * x.at(t, j);
      }
    }
    return h;
  };
  const Matrix of_inputs = hessian(inputs);
  const Matrix of_silent = hessian(silent);
  const GptqOptions gptq;
  RoundingProblem problem{&loud, FindScheme("llm-int8"), &of_inputs, nullptr, &gptq, 2};
  problem.outliers = &features;
  const absl::StatusOr<QuantizedWeight> split = RoundBesideOutliers(Find(GetParam()), problem);
  ASSERT_TRUE(split.ok()) << split.status();

  Matrix rest = weight;
  for (const int32_t k : features) {
    for (int64_t n = 0; n < rest.rows; ++n) rest.at(n, k) = 0;
  }
  const absl::StatusOr<QuantizedWeight> plain =
      Find(GetParam()).round({&rest, FindScheme("w8a8"), &of_silent, nullptr, &gptq, 1});
  ASSERT_TRUE(plain.ok()) << plain.status();
  const WeightView view = split->view();
  ASSERT_EQ(view.outliers, 3);
  for (int64_t n = 0; n < view.rows; ++n) {
    EXPECT_EQ(ReadScale(view, n, 0), ReadScale(plain->view(), n, 0));
    for (int64_t k = 0; k < view.cols; ++k) {
      EXPECT_EQ(ReadCode(view, n, k), ReadCode(plain->view(), n, k)) << n << ", " << k;
      const int64_t i = FindOutlier(features.data(), 3, k);
      EXPECT_EQ(ReadWeight(view, n, k),
                i >= 0 ? RoundToBF16(loud.at(n, k)) : ReadWeight(plain->view(), n, k));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Rounders, RoundBesideOutliersTest,
                         ::testing::Values(Rounder::kRtn, Rounder::kMse, Rounder::kGptq),
                         [](const auto& test) { return std::string(Find(test.param).name); });

}  // namespace
}  // namespace nibble
