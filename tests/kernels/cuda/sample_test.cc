// SPDX-License-Identifier: Apache-2.0
// Sampling on the device against the CPU's, whose own test holds the semantics
// (tests/kernels/sample_test.cc).
#include "kernels/cuda/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "kernels/backend.h"
#include "kernels/sampling.h"
#include "tests/kernels/activations.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/support/cuda/simt_emulator.h"
#include "tests/support/near.h"

namespace nibble::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Rows of logits with their parameters and the lists these point to.
struct Step {
  int64_t vocabulary = 0;
  std::vector<float> logits;
  std::vector<SamplingRow> rows;
  std::vector<int32_t> tokens;  // SampleArgs::tokens
  std::vector<std::unique_ptr<std::vector<int32_t>>> ids;
  std::vector<std::unique_ptr<std::vector<float>>> values;

  const int32_t* Keep(std::vector<int32_t> list) {
    return ids.emplace_back(std::make_unique<std::vector<int32_t>>(std::move(list)))->data();
  }
  const float* Keep(std::vector<float> list) {
    return values.emplace_back(std::make_unique<std::vector<float>>(std::move(list)))->data();
  }
};

Step OneRow(std::vector<float> logits, const SamplingRow& params,
            const std::vector<int32_t>& tokens = {}) {
  Step step;
  step.tokens = tokens;
  step.vocabulary = static_cast<int64_t>(logits.size());
  step.logits = std::move(logits);
  step.rows.push_back(params);
  return step;
}

std::vector<SampleResult> OnGpu(const Step& step) {
  const OnDevice<float> logits(step.logits);
  std::vector<uint8_t> host(PackedSamplingBytes(step.rows));
  PackSampling(step.rows, host.data());
  const OnDevice<uint8_t> packed(host);
  const OnDevice<int32_t> tokens(step.tokens);
  const auto results = OnDevice<SampleResult>::Poisoned(step.rows.size());
  const auto rows = static_cast<int64_t>(step.rows.size());
  const OnDevice<uint8_t> scratch(
      std::vector<uint8_t>(SampleScratchBytes(TestDevice().info(), rows)));
  LaunchSample(TestDevice(), {logits.data(), rows, step.vocabulary, packed.data(), results.data(),
                              scratch.data(), tokens.data()});
  const auto left = scratch.Read();
  EXPECT_EQ(std::count(left.begin(), left.end(), 0), static_cast<int64_t>(left.size()));
  return results.Read();
}

std::vector<SampleResult> OnCpu(const Step& step) {
  static const auto backend = MakeCpuBackend({.threads = 1, .tier = ""}).value();
  std::vector<float> logits = step.logits;
  std::vector<SampleResult> results(step.rows.size());
  backend->Sample({logits.data(), static_cast<int64_t>(step.rows.size()), step.vocabulary,
                   step.rows.data(), results.data(), step.tokens.data()});
  return results;
}

SampleResult Draw(std::vector<float> logits, const SamplingRow& params) {
  return OnGpu(OneRow(std::move(logits), params))[0];
}

// How far, as a share of the mass, the nearest decision of a draw in double precision is from
// falling otherwise; bias, bans and penalties are already in `logits`.
double Margin(const float* logits, int64_t vocabulary, const SamplingRow& p) {
  if (p.temperature <= 0) return 1;
  std::vector<int32_t> ids(static_cast<size_t>(vocabulary));
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  std::vector<double> mass;  // through each rank
  std::vector<double> weights;
  for (const int32_t id : ids) {
    weights.push_back(std::exp((double{logits[id]} - double{logits[ids[0]]}) / p.temperature));
    mass.push_back((mass.empty() ? 0 : mass.back()) + weights.back());
  }
  double margin = 1;
  const auto rank_at = [&](double target, double total) {
    const auto at = std::lower_bound(mass.begin(), mass.end(), target) - mass.begin();
    const auto rank = std::min(static_cast<size_t>(at), mass.size() - 1);
    margin = std::min(margin, std::abs(mass[rank] - target) / total);
    if (rank > 0) margin = std::min(margin, std::abs(mass[rank - 1] - target) / total);
    return rank;
  };
  double total = mass.back();
  if (p.top_k > 0 && p.top_k < vocabulary) total = mass[static_cast<size_t>(p.top_k) - 1];
  if (p.top_p < 1) total = mass[rank_at(double{p.top_p} * total, total)];
  if (p.min_p > 0) {
    size_t kept = 0;
    while (kept < weights.size() && weights[kept] >= double{p.min_p}) ++kept;
    if (kept > 0) margin = std::min(margin, weights[kept - 1] - double{p.min_p});
    if (kept < weights.size()) margin = std::min(margin, double{p.min_p} - weights[kept]);
    total = std::min(total, mass[std::max<size_t>(kept, 1) - 1]);
  }
  rank_at(UniformAt(p.seed, p.choice, p.position, 0) * total, total);
  return margin;
}

// What bias, bans and penalties make of a row.
std::vector<float> Edited(const Step& step, size_t row) {
  const auto* begin = step.logits.data() + static_cast<int64_t>(row) * step.vocabulary;
  std::vector<float> logits(begin, begin + step.vocabulary);
  const SamplingRow& p = step.rows[row];
  for (int32_t i = 0; i < p.num_bias; ++i) {
    logits[static_cast<size_t>(p.bias_ids[i])] += p.bias[i];
  }
  for (int32_t i = 0; i < p.num_banned; ++i) {
    logits[static_cast<size_t>(p.banned_ids[i])] = -kInfinity;
  }
  std::map<int32_t, int32_t> counts;
  for (int32_t i = 0; i < p.num_seen; ++i) {
    counts[p.seen_ids[i]] = p.output_counts != nullptr ? p.output_counts[i] : 0;
  }
  if (p.unlisted >= 0) ++counts[step.tokens[static_cast<size_t>(p.unlisted)]];
  for (const auto& [token, count] : counts) {
    float& logit = logits[static_cast<size_t>(token)];
    logit = Penalize(logit, count, p.repetition_penalty, p.presence_penalty, p.frequency_penalty);
  }
  return logits;
}

// Equal results; a token may differ where a decision is a matter of the last bits. Returns how
// often that was.
int ExpectAsOnCpu(const Step& step) {
  const auto gpu = OnGpu(step);
  const auto cpu = OnCpu(step);
  int close = 0;
  for (size_t row = 0; row < cpu.size(); ++row) {
    SCOPED_TRACE("row " + std::to_string(row));
    EXPECT_EQ(gpu[row].finite, cpu[row].finite);
    EXPECT_EQ(gpu[row].num_top, cpu[row].num_top);
    EXPECT_EQ(gpu[row].top_ids, cpu[row].top_ids);
    for (size_t i = 0; i < kMaxLogprobs; ++i) {
      const double expected = cpu[row].top_logprobs[i];
      EXPECT_TRUE(Near(gpu[row].top_logprobs[i], expected, kEpsilonF32 * (8 + std::abs(expected))));
    }
    if (gpu[row].token != cpu[row].token) {
      const auto logits = Edited(step, row);
      EXPECT_LT(Margin(logits.data(), step.vocabulary, step.rows[row]), 1e-6)
          << gpu[row].token << " instead of " << cpu[row].token;
      ++close;
    } else {
      const double expected = cpu[row].logprob;
      EXPECT_TRUE(Near(gpu[row].logprob, expected, kEpsilonF32 * (8 + std::abs(expected))));
    }
  }
  return close;
}

std::vector<int32_t> SomeIds(std::mt19937& random, int64_t vocabulary, int64_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(vocabulary));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), random);
  ids.resize(static_cast<size_t>(std::min(count, vocabulary)));
  return ids;
}

// Random logits of several kinds under random parameters of every kind.
Step RandomStep(std::mt19937& random, int64_t vocabulary, int rows) {
  Step step;
  step.vocabulary = vocabulary;
  for (int row = 0; row < rows; ++row) {
    step.tokens.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocabulary)));
  }
  const auto one_of = [&](auto... values) {
    const std::common_type_t<decltype(values)...> list[] = {values...};
    return list[random() % sizeof...(values)];
  };
  for (int row = 0; row < rows; ++row) {
    const float deviation = one_of(0.01f, 1.0f, 3.0f, 30.0f);
    const float middle = one_of(0.0f, -20.0f, 1000.0f);
    const bool ties = random() % 4 == 0;
    std::normal_distribution<float> normal(middle, deviation);
    for (int64_t i = 0; i < vocabulary; ++i) {
      const float logit = normal(random);
      step.logits.push_back(ties ? std::round(logit) : logit);
    }
    SamplingRow p;
    p.temperature = one_of(0.0f, 0.3f, 1.0f, 1.7f, 100.0f);
    p.top_k = one_of(0, 0, 1, 5, 40, static_cast<int>(vocabulary), 1 << 30);
    p.top_p = one_of(1.0f, 1.0f, 0.95f, 0.5f, 0.01f);
    p.min_p = one_of(0.0f, 0.0f, 0.05f, 0.9f, 1.0f);
    p.repetition_penalty = one_of(1.0f, 1.3f);
    p.presence_penalty = one_of(0.0f, 0.6f);
    p.frequency_penalty = one_of(0.0f, 0.2f);
    p.seed = random();
    p.choice = random() % 4;
    p.position = random() % 1000;
    p.logprobs = one_of(-1, -1, 0, 1, 5, 20);
    if (random() % 2 == 0) {
      const auto ids = SomeIds(random, vocabulary, 7);
      p.num_bias = static_cast<int32_t>(ids.size());
      p.bias_ids = step.Keep(ids);
      p.bias = step.Keep(RandomFloats(p.num_bias, static_cast<uint32_t>(random()), 5.0f));
    }
    if (random() % 2 == 0) {
      const auto ids = SomeIds(random, vocabulary - 1, 3);
      p.num_banned = static_cast<int32_t>(ids.size());
      p.banned_ids = step.Keep(ids);
    }
    if (random() % 2 == 0) {
      const auto ids = SomeIds(random, vocabulary, 20);
      p.num_seen = static_cast<int32_t>(ids.size());
      p.seen_ids = step.Keep(ids);
      if (random() % 2 == 0) {
        std::vector<int32_t> counts;
        for (size_t i = 0; i < ids.size(); ++i) counts.push_back(one_of(0, 1, 7));
        p.output_counts = step.Keep(counts);
      }
      // One of the list as often as another one.
      if (random() % 2 == 0) {
        p.unlisted = row;
        if (random() % 2 == 0) step.tokens[static_cast<size_t>(row)] = ids[0];
      }
    }
    step.rows.push_back(p);
  }
  return step;
}

TEST(SampleOrderTest, DescendsByLogitThenAscendsById) {
  const float logits[] = {
      std::numeric_limits<float>::max(),  2.0f,      1.5f, 0x1p-140f, 0.0f, -0x1p-140f, -1.0f,
      -std::numeric_limits<float>::max(), -kInfinity};
  for (size_t i = 0; i + 1 < std::size(logits); ++i) {
    EXPECT_LT(SampleOrder(logits[i], 9), SampleOrder(logits[i + 1], 0));
    EXPECT_LT(SampleOrder(logits[i], 8), SampleOrder(logits[i], 9));
    EXPECT_EQ(LogitOfOrder(SampleOrder(logits[i], 7)), logits[i]);
    EXPECT_EQ(IdOfOrder(SampleOrder(logits[i], 7)), 7u);
  }
  EXPECT_EQ(SampleOrder(-0.0f, 1), SampleOrder(0.0f, 1));
}

TEST(CudaSampleTest, DrawsAsTheCpuForAllParameters) {
  std::mt19937 random(20);
  int close = 0, rows = 0;
  for (const int64_t vocabulary : {1, 2, 5, 64, 100, 257, 1000}) {
    for (int batch = 0; batch < 10; ++batch) {
      close += ExpectAsOnCpu(RandomStep(random, vocabulary, 40));
      rows += 40;
    }
  }
  EXPECT_LE(close, rows / 1000);
}

TEST(CudaSampleTest, LargeVocabulariesVectorsAndTails) {
  std::mt19937 random(21);
  int close = 0;
  for (const int64_t vocabulary : {2048, 5003, 32000, 32001}) {
    close += ExpectAsOnCpu(RandomStep(random, vocabulary, 12));
  }
  EXPECT_LE(close, 1);
}

TEST(CudaSampleTest, ARowThatBlocksShareIsDrawnAsByOne) {
  std::mt19937 random(23);
  for (const int64_t vocabulary : {1025, 5004, 9001}) {
    const Step many = RandomStep(random, vocabulary, 12);  // a block each
    const auto expected = OnGpu(many);
    for (size_t row = 0; row < many.rows.size(); ++row) {
      Emulator().schedule = row % 2 == 0 ? Schedule::kAscending : Schedule::kDescending;
      const auto begin = many.logits.begin() + static_cast<int64_t>(row) * vocabulary;
      const auto found = OnGpu(OneRow({begin, begin + vocabulary}, many.rows[row], many.tokens))[0];
      EXPECT_EQ(found.token, expected[row].token);
      EXPECT_EQ(found.logprob, expected[row].logprob);
      EXPECT_EQ(found.top_ids, expected[row].top_ids);
      EXPECT_EQ(found.top_logprobs, expected[row].top_logprobs);
    }
  }
}

TEST(CudaSampleTest, RunsOfEqualLogitsLongerThanWhatIsSorted) {
  // All equal; two values; a narrow band; a floor far below one token.
  for (int kind = 0; kind < 4; ++kind) {
    std::vector<float> logits(5000);
    for (size_t i = 0; i < logits.size(); ++i) {
      logits[i] = kind == 0   ? -3.0f
                  : kind == 1 ? (i % 2 == 0 ? 1.0f : 1.5f)
                  : kind == 2 ? 1.0f + 0x1p-23f * static_cast<float>(i * 7919 % 3001)
                              : (i == 4321 ? 9.0f : 0.0f);
    }
    for (const float top_p : {1.0f, 0.7f}) {
      for (uint32_t position = 0; position < 8; ++position) {
        SamplingRow params;
        params.position = position;
        params.top_p = top_p;
        params.top_k = position % 2 == 0 ? 0 : 3000;
        params.logprobs = 20;
        ExpectAsOnCpu(OneRow(logits, params));
      }
    }
  }
}

TEST(CudaSampleTest, GreedyTakesTheFirstLargest) {
  SamplingRow params;
  params.temperature = 0;
  EXPECT_EQ(Draw({1, 3, 2, 3}, params).token, 1);
  EXPECT_EQ(Draw({-0.0f, 0.0f}, params).token, 0);
  EXPECT_EQ(Draw(std::vector<float>(3000, 0.5f), params).token, 0);
}

TEST(CudaSampleTest, TopKOfOneIsGreedyAtAnyTemperature) {
  SamplingRow params;
  params.temperature = 50;
  params.top_k = 1;
  for (params.position = 0; params.position < 50; ++params.position) {
    EXPECT_EQ(Draw({1, 3, 2, 3}, params).token, 1);
  }
}

TEST(CudaSampleTest, OneHotAndMaskedRows) {
  std::vector<float> logits(300, -kInfinity);
  logits[123] = -5.0f;
  SamplingRow params;
  params.temperature = 3;
  params.logprobs = 20;
  const SampleResult result = Draw(logits, params);
  EXPECT_TRUE(result.finite);
  EXPECT_EQ(result.token, 123);
  EXPECT_EQ(result.logprob, 0.0f);
  EXPECT_EQ(result.num_top, 1);
  EXPECT_EQ(result.top_ids[0], 123);
  // So far below the largest that its weight is 0: still among the top ones.
  logits[7] = -500.0f;
  EXPECT_EQ(Draw(logits, params).num_top, 2);
  EXPECT_FLOAT_EQ(Draw(logits, params).top_logprobs[1], -495.0f);
}

TEST(CudaSampleTest, RowsWithoutADistributionFailAlone) {
  Step step;
  step.vocabulary = 100;
  step.logits = RandomFloats(400, 3);
  step.logits[57] = std::nanf("");
  step.logits[157] = kInfinity;
  std::fill_n(step.logits.begin() + 200, 100, -kInfinity);
  step.rows.resize(4);
  for (SamplingRow& row : step.rows) row.logprobs = 3;
  const auto results = OnGpu(step);
  for (size_t row = 0; row < 3; ++row) {
    EXPECT_FALSE(results[row].finite);
    EXPECT_EQ(results[row].token, 0);
    EXPECT_EQ(results[row].num_top, 0);
  }
  EXPECT_TRUE(results[3].finite);
  EXPECT_EQ(results[3].token, OnCpu(step)[3].token);
}

TEST(CudaSampleTest, DrawsFollowTheSoftmax) {
  const std::vector<float> logits = {std::log(0.10f), std::log(0.40f), std::log(0.05f),
                                     std::log(0.25f), std::log(0.20f)};
  constexpr int kDraws = 4000;
  Step step;
  step.vocabulary = 5;
  for (int i = 0; i < kDraws; ++i) {
    step.logits.insert(step.logits.end(), logits.begin(), logits.end());
    SamplingRow params;
    params.seed = 42;
    params.position = static_cast<uint32_t>(i);
    step.rows.push_back(params);
  }
  std::vector<double> histogram(logits.size());
  for (const SampleResult& result : OnGpu(step)) ++histogram[static_cast<size_t>(result.token)];
  double chi_square = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double expected = kDraws * std::exp(double{logits[i]});
    chi_square += (histogram[i] - expected) * (histogram[i] - expected) / expected;
  }
  EXPECT_LT(chi_square, 18.47) << "99.9 % quantile with 4 degrees of freedom";
}

TEST(CudaSampleTest, TheSameBitsInEverySchedule) {
  std::mt19937 random(22);
  for (const int64_t vocabulary : {100, 4000}) {
    const Step step = RandomStep(random, vocabulary, 20);
    const auto first = OnGpu(step);
    for (const Schedule schedule : {Schedule::kDescending, Schedule::kAscending}) {
      Emulator().schedule = schedule;
      const auto again = OnGpu(step);
      for (size_t row = 0; row < first.size(); ++row) {
        EXPECT_EQ(again[row].token, first[row].token);
        EXPECT_EQ(again[row].logprob, first[row].logprob);
        EXPECT_EQ(again[row].top_ids, first[row].top_ids);
        EXPECT_EQ(again[row].top_logprobs, first[row].top_logprobs);
      }
    }
  }
}

}  // namespace
}  // namespace nibble::testing
