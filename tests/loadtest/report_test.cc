// SPDX-License-Identifier: Apache-2.0
#include "loadtest/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble::load {
namespace {

using ::testing::HasSubstr;

TEST(QuantileTest, InterpolatesBetweenNeighbours) {
  // numpy.quantile([4, 1, 3, 2], [0, .25, .5, .9, 1])
  const std::vector<double> values = {4, 1, 3, 2};
  EXPECT_DOUBLE_EQ(Quantile(values, 0), 1);
  EXPECT_DOUBLE_EQ(Quantile(values, 0.25), 1.75);
  EXPECT_DOUBLE_EQ(Quantile(values, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(Quantile(values, 0.9), 3.7);
  EXPECT_DOUBLE_EQ(Quantile(values, 1), 4);
  EXPECT_DOUBLE_EQ(Quantile({}, 0.5), 0);
}

Outcome Answered(double first, double end, std::vector<double> gaps) {
  Outcome outcome;
  outcome.status = "OK";
  outcome.finish = "length";
  outcome.prompt_tokens = 10;
  outcome.tokens = static_cast<int64_t>(gaps.size()) + 1;
  outcome.first_token = first;
  outcome.end = end;
  outcome.gaps = std::move(gaps);
  return outcome;
}

TEST(ReportTest, CountsOutcomesAndTokensAndTimes) {
  Report report;
  report.Add(Answered(0.1, 0.5, {0.2, 0.2}));
  report.Add(Answered(0.3, 0.7, {0.4}));
  Outcome refused;
  refused.status = "RESOURCE_EXHAUSTED";
  refused.message = "the queue is full";
  report.Add(refused);
  report.NotSent();

  const nlohmann::json json = report.ToJson(2.0);
  EXPECT_EQ(json["requests"], 3);
  EXPECT_EQ(json["not_sent"], 1);
  EXPECT_EQ(json["outcomes"]["OK/length"], 2);
  EXPECT_EQ(json["outcomes"]["RESOURCE_EXHAUSTED"], 1);
  EXPECT_EQ(json["messages"]["RESOURCE_EXHAUSTED"], "the queue is full");
  EXPECT_EQ(json["generated_tokens"], 5);
  EXPECT_DOUBLE_EQ(json["generated_tokens_per_s"], 2.5);
  EXPECT_DOUBLE_EQ(json["requests_per_s"], 1.0);
  EXPECT_DOUBLE_EQ(json["time_to_first_token_seconds"]["p50"], 0.2);
  EXPECT_DOUBLE_EQ(json["inter_token_seconds"]["max"], 0.4);
  EXPECT_EQ(json["inter_token_seconds"]["count"], 3);
  // A refusal has no latency: it would make the server look fast.
  EXPECT_EQ(json["end_to_end_seconds"]["count"], 2);

  const std::string table = Report::Table(json);
  EXPECT_THAT(table, HasSubstr("RESOURCE_EXHAUSTED"));
  EXPECT_THAT(table, HasSubstr("not sent"));
}

}  // namespace
}  // namespace nibble::load
