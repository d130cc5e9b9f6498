// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "kernels/backend.h"
#include "kernels/philox.h"
#include "kernels/sampling.h"
#include "tests/kernels/activations.h"

namespace nibble::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class SampleTest : public ::testing::Test {
 protected:
  SampleResult Draw(std::vector<float> logits, const SamplingRow& params,
                    const std::vector<int32_t>& tokens = {}) {
    SampleResult result;
    SampleArgs args{};
    args.logits = logits.data();
    args.rows = 1;
    args.vocabulary = static_cast<int64_t>(logits.size());
    args.params = &params;
    args.results = &result;
    args.tokens = tokens.data();
    backend_->Sample(args);
    return result;
  }
  // Ids drawn at `count` positions.
  std::vector<int64_t> Histogram(const std::vector<float>& logits, SamplingRow params, int count) {
    std::vector<int64_t> histogram(logits.size(), 0);
    for (int i = 0; i < count; ++i) {
      params.position = static_cast<uint32_t>(i);
      ++histogram[static_cast<size_t>(Draw(logits, params).token)];
    }
    return histogram;
  }
  std::set<int32_t> Members(const std::vector<float>& logits, const SamplingRow& params) {
    const auto histogram = Histogram(logits, params, 3000);
    std::set<int32_t> members;
    for (size_t i = 0; i < histogram.size(); ++i) {
      if (histogram[i] > 0) members.insert(static_cast<int32_t>(i));
    }
    return members;
  }
  std::unique_ptr<Backend> backend_ = MakeCpuBackend({.threads = 2, .tier = ""}).value();
};

// ln of the given probabilities, in a shuffled order of ids.
const std::vector<float> kLogits = {std::log(0.10f), std::log(0.40f), std::log(0.05f),
                                    std::log(0.25f), std::log(0.20f)};

TEST(PhiloxTest, GivesThePublishedVectors) {
  // Known answers distributed with the authors' Random123 library.
  const Philox4 zero = Philox4x32(Philox4{{0, 0, 0, 0}}, 0, 0);
  EXPECT_EQ(zero.word[0], 0x6627e8d5u);
  EXPECT_EQ(zero.word[1], 0xe169c58du);
  EXPECT_EQ(zero.word[2], 0xbc57ac4cu);
  EXPECT_EQ(zero.word[3], 0x9b00dbd8u);
  const Philox4 ones = Philox4x32(Philox4{{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u);
  EXPECT_EQ(ones.word[0], 0x408f276du);
  EXPECT_EQ(ones.word[1], 0x41c83b0eu);
  EXPECT_EQ(ones.word[2], 0xa20bc7c6u);
  EXPECT_EQ(ones.word[3], 0x6d5451fdu);
}

TEST(UniformTest, DependsOnEveryPartOfTheKey) {
  const double base = UniformAt(1, 2, 3, 4);
  EXPECT_EQ(base, UniformAt(1, 2, 3, 4));
  EXPECT_NE(base, UniformAt(9, 2, 3, 4));
  EXPECT_NE(base, UniformAt(1 + (uint64_t{1} << 32), 2, 3, 4));
  EXPECT_NE(base, UniformAt(1, 9, 3, 4));
  EXPECT_NE(base, UniformAt(1, 2, 9, 4));
  EXPECT_NE(base, UniformAt(1, 2, 3, 9));
}

TEST_F(SampleTest, DrawsFollowTheSoftmax) {
  SamplingRow params;
  params.seed = 42;
  constexpr int kDraws = 20000;
  const auto histogram = Histogram(kLogits, params, kDraws);
  double chi_square = 0;
  for (size_t i = 0; i < kLogits.size(); ++i) {
    const double expected = kDraws * std::exp(double{kLogits[i]});
    chi_square += (static_cast<double>(histogram[i]) - expected) *
                  (static_cast<double>(histogram[i]) - expected) / expected;
  }
  EXPECT_LT(chi_square, 18.47) << "99.9 % quantile with 4 degrees of freedom";
}

TEST_F(SampleTest, TemperatureSharpensTheDistribution) {
  SamplingRow params;
  params.temperature = 0.5f;  // probabilities are squared
  constexpr int kDraws = 20000;
  const auto histogram = Histogram(kLogits, params, kDraws);
  double total = 0;
  for (const float logit : kLogits) total += std::exp(2.0 * logit);
  double chi_square = 0;
  for (size_t i = 0; i < kLogits.size(); ++i) {
    const double expected = kDraws * std::exp(2.0 * kLogits[i]) / total;
    chi_square += (static_cast<double>(histogram[i]) - expected) *
                  (static_cast<double>(histogram[i]) - expected) / expected;
  }
  EXPECT_LT(chi_square, 18.47);
}

TEST_F(SampleTest, TemperatureZeroTakesTheFirstLargest) {
  SamplingRow params;
  params.temperature = 0;
  EXPECT_EQ(Draw({1, 3, 2, 3}, params).token, 1);
}

TEST_F(SampleTest, ADrawIsAFunctionOfItsKeyAndNotOfTheBatch) {
  const auto logits = RandomFloats(1000, 5, 2.0f);
  SamplingRow params;
  params.seed = 7;
  params.position = 11;
  const int32_t alone = Draw(logits, params).token;
  EXPECT_EQ(Draw(logits, params).token, alone);
  std::vector<float> rows;
  std::vector<SamplingRow> all(9, params);
  for (size_t row = 0; row < all.size(); ++row) {
    rows.insert(rows.end(), logits.begin(), logits.end());
    if (row != 4) all[row].seed = 100 + row;
  }
  std::vector<SampleResult> results(all.size());
  backend_->Sample({rows.data(), 9, 1000, all.data(), results.data()});
  EXPECT_EQ(results[4].token, alone);
  std::set<int32_t> others;
  for (const SampleResult& result : results) others.insert(result.token);
  EXPECT_GT(others.size(), 3u);
}

TEST_F(SampleTest, EveryTierDrawsTheSame) {
  const auto logits = RandomFloats(2000, 6, 3.0f);
  std::vector<SampleResult> scalar;
  for (const std::string& tier : Tiers()) {
    backend_ = MakeCpuBackend({.threads = 1, .tier = tier}).value();
    for (uint32_t i = 0; i < 50; ++i) {
      SamplingRow params;
      params.position = i;
      params.top_p = 0.95f;
      params.logprobs = 5;
      const SampleResult result = Draw(logits, params);
      if (tier == "scalar") {
        scalar.push_back(result);
        continue;
      }
      EXPECT_EQ(result.token, scalar[i].token);
      EXPECT_EQ(result.logprob, scalar[i].logprob);
      EXPECT_EQ(result.top_logprobs, scalar[i].top_logprobs);
    }
  }
}

TEST_F(SampleTest, AFlatDistributionReachesItsWholeVocabulary) {
  EXPECT_EQ(Members(std::vector<float>(200, 0.0f), {}).size(), 200u);
}

TEST_F(SampleTest, UnlikelyTokensAreDrawnAtTheirRate) {
  // One token holds nearly everything; 4,000 others share 1 %.
  std::vector<float> logits(4001, std::log(0.01f / 4000));
  logits[17] = std::log(0.99f);
  const auto histogram = Histogram(logits, {}, 20000);
  const int64_t others = 20000 - histogram[17];
  EXPECT_NEAR(static_cast<double>(others), 200.0, 60.0);
}

TEST_F(SampleTest, TopKKeepsTheKLargestAndTiesGoToTheLowerId) {
  SamplingRow params;
  params.top_k = 2;
  EXPECT_EQ(Members(kLogits, params), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(Members({0, 1, 1, 1, 0}, params), (std::set<int32_t>{1, 2}));
  params.top_k = 1;
  EXPECT_EQ(Members(kLogits, params), (std::set<int32_t>{1}));
  params.top_k = 100;
  EXPECT_EQ(Members(kLogits, params).size(), 5u);
}

TEST_F(SampleTest, TopPKeepsTheShortestRunThatReachesIt) {
  SamplingRow params;
  params.top_p = 0.3f;
  EXPECT_EQ(Members(kLogits, params), (std::set<int32_t>{1}));
  params.top_p = 0.6f;
  EXPECT_EQ(Members(kLogits, params), (std::set<int32_t>{1, 3}));
  params.top_p = 0.7f;
  EXPECT_EQ(Members(kLogits, params), (std::set<int32_t>{1, 3, 4}));
  params.top_p = 0.0f;
  EXPECT_EQ(Members(kLogits, params), (std::set<int32_t>{1}));
  // Of 0.40 and 0.25, the first alone is 61 %.
  params.top_k = 2;
  params.top_p = 0.6f;
  EXPECT_EQ(Members(kLogits, params), (std::set<int32_t>{1}));
}

TEST_F(SampleTest, MinPIsRelativeToTheMostProbable) {
  SamplingRow params;
  params.min_p = 0.45f;  // at least 0.18
  EXPECT_EQ(Members(kLogits, params), (std::set<int32_t>{1, 3, 4}));
  params.min_p = 1.0f;
  EXPECT_EQ(Members(kLogits, params), (std::set<int32_t>{1}));
}

TEST_F(SampleTest, BiasAndBansAreAppliedFirst) {
  const int32_t ids[] = {2};
  const float bias[] = {10.0f};
  SamplingRow params;
  params.temperature = 0;
  params.bias_ids = ids;
  params.bias = bias;
  params.num_bias = 1;
  EXPECT_EQ(Draw(kLogits, params).token, 2);
  params.banned_ids = ids;
  params.num_banned = 1;
  EXPECT_EQ(Draw(kLogits, params).token, 1);
  params.temperature = 1;
  EXPECT_EQ(Members(kLogits, params), (std::set<int32_t>{0, 1, 3, 4}));
}

// All penalties, greedily, with the three most likely tokens.
SamplingRow Penalized() {
  SamplingRow params;
  params.temperature = 0;
  params.repetition_penalty = 2.0f;
  params.presence_penalty = 0.25f;
  params.frequency_penalty = 0.5f;
  params.logprobs = 3;
  return params;
}

TEST_F(SampleTest, PenaltiesFollowTheirFormulas) {
  // Logits 2, -1, 0.5; the first two seen, the second three times in the output.
  const int32_t seen[] = {0, 1};
  const int32_t counts[] = {0, 3};
  SamplingRow params = Penalized();
  params.seen_ids = seen;
  params.output_counts = counts;
  params.num_seen = 2;
  const SampleResult result = Draw({2.0f, -1.0f, 0.5f}, params);
  const double edited[] = {1.0, -2.0 - 0.25 - 1.5, 0.5};
  double total = 0;
  for (const double logit : edited) total += std::exp(logit);
  EXPECT_EQ(result.token, 0);
  ASSERT_EQ(result.num_top, 3);
  const int32_t order[] = {0, 2, 1};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(result.top_ids[i], order[i]);
    EXPECT_NEAR(result.top_logprobs[i], edited[order[i]] - std::log(total), 1e-5);
  }
}

TEST_F(SampleTest, ATokenThatIsNotListedYetCountsOnceMore) {
  const int32_t seen[] = {0, 1}, counts[] = {0, 3}, counts_after[] = {0, 4};
  const int32_t seen_after[] = {0, 1, 2}, all_counts[] = {0, 3, 1};
  SamplingRow params = Penalized();
  const auto draw = [&](const int32_t* ids, const int32_t* times, int32_t count, int32_t unlisted) {
    params.seen_ids = ids;
    params.output_counts = times;
    params.num_seen = count;
    params.unlisted = unlisted;
    return Draw({2.0f, 1.0f, 0.5f}, params, {7, 1, 2}).top_logprobs;
  };
  EXPECT_EQ(draw(seen, counts, 2, 1), draw(seen, counts_after, 2, -1));
  EXPECT_EQ(draw(seen, counts, 2, 2), draw(seen_after, all_counts, 3, -1));
}

TEST_F(SampleTest, NoParametersLeaveNothingToDrawFrom) {
  const int32_t ids[] = {0, 1, 2};
  const float bias[] = {3.4e38f, -3.4e38f, 3.4e38f};
  const int32_t counts[] = {1, 1, 1};
  SamplingRow params;
  params.bias_ids = ids;
  params.bias = bias;
  params.num_bias = 3;
  params.seen_ids = ids;
  params.output_counts = counts;
  params.num_seen = 3;
  for (const float penalty : {1e-38f, 0.5f, 2.0f, 3.4e38f}) {
    params.repetition_penalty = penalty;
    EXPECT_TRUE(Draw({2.0f, -1.0f, 0.5f}, params).finite) << penalty;
  }
}

TEST_F(SampleTest, LogprobsAreOfTheDistributionBeforeTemperatureAndTruncation) {
  SamplingRow params;
  params.temperature = 0.1f;
  params.top_k = 1;
  params.logprobs = 2;
  const SampleResult result = Draw(kLogits, params);
  EXPECT_EQ(result.token, 1);
  EXPECT_NEAR(result.logprob, std::log(0.40), 1e-5);
  ASSERT_EQ(result.num_top, 2);
  EXPECT_EQ(result.top_ids[1], 3);
  EXPECT_NEAR(result.top_logprobs[1], std::log(0.25), 1e-5);
  params.logprobs = 0;
  EXPECT_EQ(Draw(kLogits, params).num_top, 0);
  EXPECT_NEAR(Draw(kLogits, params).logprob, std::log(0.40), 1e-5);
}

TEST_F(SampleTest, LogitsWithoutADistributionFailAlone) {
  EXPECT_FALSE(Draw({1.0f, std::nanf(""), 2.0f}, {}).finite);
  EXPECT_FALSE(Draw({-kInfinity, -kInfinity}, {}).finite);
  EXPECT_FALSE(Draw({0.0f, kInfinity}, {}).finite);
  const SampleResult one = Draw({-kInfinity, 0.0f, -kInfinity}, {});
  EXPECT_TRUE(one.finite);
  EXPECT_EQ(one.token, 1);
}

}  // namespace
}  // namespace nibble::testing
