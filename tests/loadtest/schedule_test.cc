// SPDX-License-Identifier: Apache-2.0
#include "loadtest/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble::load {
namespace {

constexpr int kMany = 20000;

TEST(ScheduleTest, TheSeedDecidesEverything) {
  Options options;
  options.rate = 10;
  options.spread = 0.5;
  options.abort_fraction = 0.5;
  Schedule one(options, 100);
  Schedule other(options, 100);
  for (int i = 0; i < 50; ++i) {
    const Plan a = one.Next();
    const Plan b = other.Next();
    EXPECT_EQ(a.arrival, b.arrival);
    EXPECT_EQ(a.prompt, b.prompt);
    EXPECT_EQ(a.max_tokens, b.max_tokens);
    EXPECT_EQ(a.seed, b.seed);
    EXPECT_EQ(a.abort_after, b.abort_after);
  }
}

TEST(ScheduleTest, ArrivalsArePoisson) {
  Options options;
  options.rate = 50;
  options.prompt_tokens = 1;
  Schedule schedule(options, 100);
  double last = 0;
  double sum = 0;
  double squares = 0;
  for (int i = 0; i < kMany; ++i) {
    const double gap = schedule.Next().arrival - last;
    last += gap;
    sum += gap;
    squares += gap * gap;
  }
  // Gaps are exponential: mean and standard deviation are both 1 / rate.
  const double mean = sum / kMany;
  EXPECT_NEAR(mean, 0.02, 0.001);
  EXPECT_NEAR(std::sqrt(squares / kMany - mean * mean), 0.02, 0.001);
}

TEST(ScheduleTest, LengthsStayWithinTheSpreadAndTokensWithinTheVocabulary) {
  Options options;
  options.prompt_tokens = 40;
  options.max_tokens = 20;
  options.spread = 0.25;
  Schedule schedule(options, 7);
  for (int i = 0; i < 2000; ++i) {
    const Plan plan = schedule.Next();
    EXPECT_GE(plan.prompt.size(), 30u);
    EXPECT_LE(plan.prompt.size(), 50u);
    EXPECT_GE(plan.max_tokens, 15);
    EXPECT_LE(plan.max_tokens, 25);
    for (int32_t token : plan.prompt) {
      EXPECT_GE(token, 0);
      EXPECT_LT(token, 7);
    }
    EXPECT_FALSE(plan.abort_after.has_value());
    EXPECT_EQ(plan.arrival, 0);  // closed loop
  }
}

TEST(ScheduleTest, TheAbortFractionIsKept) {
  Options options;
  options.prompt_tokens = 1;
  options.abort_fraction = 0.3;
  Schedule schedule(options, 100);
  int aborts = 0;
  for (int i = 0; i < kMany; ++i) {
    const Plan plan = schedule.Next();
    if (!plan.abort_after) continue;
    ++aborts;
    EXPECT_LT(*plan.abort_after, plan.max_tokens);
  }
  EXPECT_NEAR(static_cast<double>(aborts) / kMany, 0.3, 0.02);
}

}  // namespace
}  // namespace nibble::load
