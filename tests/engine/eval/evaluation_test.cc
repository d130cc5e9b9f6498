// SPDX-License-Identifier: Apache-2.0
#include "engine/eval/evaluation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace nibble {
namespace {

using ::testing::HasSubstr;

std::vector<Document> Lists(const std::vector<EvaluationWindow>& windows) {
  std::vector<Document> lists;
  for (const EvaluationWindow& window : windows) lists.push_back(window.tokens);
  return lists;
}

TEST(PlanWindows, CutsLongDocumentsAndRestartsThemWithTheirBos) {
  EvaluateOptions options;
  options.bos_id = 1;
  const auto windows = PlanWindows({{1, 5, 6, 7, 8, 9}, {5, 6, 7, 8, 9}}, 10, 4, options);
  ASSERT_TRUE(windows.ok()) << windows.status();
  // The last token of the second document would be a window that predicts nothing.
  EXPECT_EQ(Lists(*windows), (std::vector<Document>{{1, 5, 6, 7}, {1, 8, 9}, {5, 6, 7, 8}}));
  EXPECT_EQ((*windows)[1].document, 0u);
  EXPECT_EQ((*windows)[2].document, 1u);
}

TEST(PlanWindows, StopsAfterTheWindowThatReachesThePredictionsWanted) {
  EvaluateOptions options;
  options.max_predictions = 4;
  const auto windows = PlanWindows({{1, 2}, {1, 2, 3, 4, 5, 6, 7, 8, 9}, {1, 2}}, 10, 3, options);
  ASSERT_TRUE(windows.ok()) << windows.status();
  EXPECT_EQ(Lists(*windows), (std::vector<Document>{{1, 2}, {1, 2, 3}, {4, 5, 6}}));
}

TEST(PlanWindows, CutsEveryDocument) {
  EvaluateOptions options;
  options.max_tokens = 3;
  const auto windows = PlanWindows({{1, 2, 3, 4}, {}, {4, 5}}, 10, 8, options);
  ASSERT_TRUE(windows.ok()) << windows.status();
  EXPECT_EQ(Lists(*windows), (std::vector<Document>{{1, 2, 3}, {4, 5}}));
}

TEST(PlanWindows, RefusesWhatCannotBeScored) {
  EXPECT_THAT(std::string(PlanWindows({{1, 2}, {1, 10}}, 10, 4, {}).status().message()),
              HasSubstr("document 2 holds token 10; the model's ids are 0..9"));
  EXPECT_THAT(std::string(PlanWindows({{1, 2}}, 10, 1, {}).status().message()),
              HasSubstr("window is 1"));
  EXPECT_THAT(std::string(PlanWindows({{1}, {}}, 10, 4, {}).status().message()),
              HasSubstr("no token to predict"));
}

TEST(ScoreSum, AddsWhatTheFormulasSay) {
  // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4).
  const float p[] = {std::log(0.5f), std::log(0.25f), std::log(0.25f)};
  const float q[] = {std::log(0.25f), std::log(0.5f), std::log(0.25f)};
  const int32_t target = 0;
  ScoreSum sum(3, /*with_reference=*/true);
  sum.Add(0, q, p, {&target, 1});
  sum.Add(2, p, p, {&target, 1});
  const auto evaluation = sum.Finish();
  ASSERT_TRUE(evaluation.ok()) << evaluation.status();
  ASSERT_EQ(evaluation->documents.size(), 3u);
  EXPECT_EQ(evaluation->documents[1].predictions, 0);
  EXPECT_NEAR(evaluation->documents[0].kl, 0.25 * std::log(2.0), 1e-6);
  EXPECT_NEAR(evaluation->documents[2].kl, 0.0, 1e-12);
  EXPECT_NEAR(evaluation->nll(), (std::log(4.0) + std::log(2.0)) / 2, 1e-6);
  EXPECT_NEAR(evaluation->reference_nll(), std::log(2.0), 1e-6);
  EXPECT_EQ(evaluation->same_top(), 0.5);
  EXPECT_NEAR(evaluation->documents[0].miss_gap, std::log(2.0), 1e-6);
  EXPECT_EQ(evaluation->documents[2].miss_gap, 0.0);
  EXPECT_EQ(evaluation->miss_gap(), evaluation->documents[0].miss_gap);
}

TEST(ScoreSum, RefusesLogitsThatAreNotFinite) {
  const float logits[] = {0.0f, std::numeric_limits<float>::quiet_NaN()};
  const int32_t target = 1;
  ScoreSum sum(2, /*with_reference=*/false);
  sum.Add(0, logits, nullptr, {&target, 1});
  EXPECT_EQ(sum.Finish().status().code(), absl::StatusCode::kInternal);
}

TEST(ReferenceKvFormat, IsNeverAQuantizedOne) {
  for (const KvFormat& format : kKvFormats) {
    EXPECT_STREQ(ReferenceKvFormat(format).name, format.k == KvCode::kF32 ? "f32" : "bf16");
  }
}

}  // namespace
}  // namespace nibble
