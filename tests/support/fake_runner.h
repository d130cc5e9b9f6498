// SPDX-License-Identifier: Apache-2.0
// A model without arithmetic: it keeps the tokens themselves in the blocks of its KV cache, and
// what it draws depends on every token that it reads back through the block table. A block that is
// shared, freed or filled wrongly therefore changes the output, or fails a test at once.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "engine/serve/runner.h"

namespace nibble::testing {

class FakeRunner final : public ModelRunner {
 public:
  static RunnerLimits DefaultLimits() {
    RunnerLimits limits;
    limits.vocab = 1000;
    limits.max_context = 1024;
    limits.max_rows = 64;
    limits.max_logit_rows = 16;
    limits.max_sequences = 16;
    limits.kv_blocks = 256;
    limits.kv_block_bytes = 64;
    limits.eos_ids = {kEos};
    return limits;
  }
  static constexpr int32_t kEos = 2;

  explicit FakeRunner(const RunnerLimits& limits = DefaultLimits())
      : limits_(limits), kv_(static_cast<size_t>(limits.kv_blocks) * kKvBlockTokens, -1) {}

  // Replaces the drawn token: called with the sequence's tokens so far. Default: a hash of them,
  // never kEos; if the temperature is not 0, also of seed, choice and position.
  std::function<int32_t(std::span<const int32_t>)> next;
  // Called at the end of Submit: the step is under way.
  std::function<void()> after_submit;
  // Called in Collect, before the results of the step are there.
  std::function<void()> before_collect;
  // What the next Collect returns instead of results, if not OK.
  absl::Status failure;
  // The next draw has no finite logits.
  bool not_finite = false;

  int64_t steps() const { return steps_; }
  int32_t largest_step() const { return largest_step_; }

  const RunnerLimits& limits() const override { return limits_; }

  // Computes at once; the results wait for Collect.
  void Submit(const StepInput& input) override {
    ASSERT_LT(under_way_.size(), limits_.ahead ? size_t{kStepsUnderWay} : size_t{1});
    for (const Step& step : under_way_) {
      ASSERT_TRUE(step.input->score.empty()) << "the logits of a step that scores were overwritten";
    }
    ++steps_;
    largest_step_ = std::max(largest_step_, input.rows());
    EXPECT_LE(input.rows(), limits_.max_rows);
    EXPECT_LE(input.sequences(), limits_.max_sequences);
    EXPECT_LE(input.logit_rows.size(), static_cast<size_t>(limits_.max_logit_rows));
    EXPECT_TRUE(std::is_sorted(input.logit_rows.begin(), input.logit_rows.end()));
    for (size_t row = 0; row < input.token_ids.size(); ++row) {
      kv_[Slot(input, input.row_sequence[row], input.positions[row])] =
          TokenOf(input.token_ids[row]);
    }
    under_way_.push_back({&input, {}});
    Compute(input, &under_way_.back().output);
    drawn_ = under_way_.back().output.samples;
    if (after_submit) after_submit();
  }

  absl::Status Collect(StepOutput* output) override {
    if (before_collect) before_collect();
    *output = std::move(under_way_.front().output);
    under_way_.pop_front();
    return failure;
  }

  // Rows whose token the step before had drawn and nobody had seen yet.
  int64_t rows_ahead() const { return rows_ahead_; }

  // The token that is drawn greedily after `context`.
  int32_t Greedy(std::span<const int32_t> context) const {
    return next ? next(context) : InVocabulary(Hash(context));
  }
  // prompt followed by `count` greedy tokens.
  std::vector<int32_t> Continuation(std::vector<int32_t> prompt, int32_t count) const {
    const size_t size = prompt.size();
    for (int32_t i = 0; i < count; ++i) prompt.push_back(Greedy(prompt));
    prompt.erase(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(size));
    return prompt;
  }
  static float LogprobOf(std::span<const int32_t> context, int32_t token) {
    return -static_cast<float>((Hash(context) + static_cast<uint64_t>(token)) % 997) / 100.0f;
  }

 private:
  struct Step {
    const StepInput* input;
    StepOutput output;
  };

  int32_t TokenOf(int32_t id) {
    if (id >= 0) return id;
    ++rows_ahead_;
    EXPECT_LT(static_cast<size_t>(-1 - id), drawn_.size()) << "nothing drew that token";
    return drawn_[static_cast<size_t>(-1 - id)].token;
  }
  void Compute(const StepInput& input, StepOutput* output) {
    for (size_t i = 0; i < input.logit_rows.size(); ++i) {
      const auto row = static_cast<size_t>(input.logit_rows[i]);
      const std::vector<int32_t> context =
          Context(input, input.row_sequence[row], input.positions[row] + 1);
      if (input.draws[i] != 0) {
        output->samples.push_back(
            Draw(context, input.sampling[output->samples.size()], static_cast<int32_t>(row)));
      } else {
        const ScoreRow& wanted = input.score[output->scores.size()];
        TokenLogprob score;
        score.token = wanted.target;
        score.logprob = LogprobOf(context, wanted.target);
        for (int32_t k = 0; k < wanted.top; ++k) score.top.push_back({k, LogprobOf(context, k)});
        output->scores.push_back(score);
      }
    }
  }

  static uint64_t Hash(std::span<const int32_t> context) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const int32_t token : context)
      hash = (hash ^ static_cast<uint64_t>(token)) * 0x100000001b3u;
    return hash ^ (hash >> 29);
  }
  int32_t InVocabulary(uint64_t hash) const {
    return 3 + static_cast<int32_t>(hash % static_cast<uint64_t>(limits_.vocab - 3));
  }
  size_t Slot(const StepInput& input, int32_t sequence, int32_t position) const {
    const auto entry = static_cast<size_t>(sequence * input.max_blocks + position / kKvBlockTokens);
    EXPECT_LT(position / kKvBlockTokens, input.max_blocks);
    const int32_t block = input.block_table[entry];
    EXPECT_TRUE(block >= 0 && block < limits_.kv_blocks);
    return static_cast<size_t>(block * kKvBlockTokens + position % kKvBlockTokens);
  }
  std::vector<int32_t> Context(const StepInput& input, int32_t sequence, int32_t length) const {
    std::vector<int32_t> context(static_cast<size_t>(length));
    for (int32_t at = 0; at < length; ++at) {
      context[static_cast<size_t>(at)] = kv_[Slot(input, sequence, at)];
    }
    return context;
  }
  // `last` is the row of the step that holds the last token of `context`.
  SampleResult Draw(std::span<const int32_t> context, const SamplingRow& row, int32_t last) {
    EXPECT_EQ(row.position, context.size()) << "the random key must be the drawn token's position";
    if (row.num_seen > 0) {
      std::set<int32_t> seen(row.seen_ids, row.seen_ids + row.num_seen);
      if (row.unlisted >= 0) {
        EXPECT_EQ(row.unlisted, last) << "no other row has a token that is not known";
        seen.insert(context.back());
      }
      EXPECT_EQ(seen, std::set<int32_t>(context.begin(), context.end()))
          << "penalties must know every token";
    }
    SampleResult result;
    if (std::exchange(not_finite, false)) {
      result.finite = false;
      return result;
    }
    result.token = Greedy(context);
    if (row.temperature != 0 && !next) {
      const uint64_t key = row.seed * 31 + row.choice * 7919 + row.position;
      result.token = InVocabulary(Hash(context) ^ (key * 0x9e3779b97f4a7c15u >> 7));
    }
    for (int32_t i = 0; i < row.num_banned; ++i) {
      if (row.banned_ids[i] == result.token) result.token = InVocabulary(Hash(context));
    }
    result.logprob = LogprobOf(context, result.token);
    result.num_top = std::max(row.logprobs, 0);
    for (int32_t k = 0; k < result.num_top; ++k) {
      result.top_ids[static_cast<size_t>(k)] = k;
      result.top_logprobs[static_cast<size_t>(k)] = LogprobOf(context, k);
    }
    return result;
  }

  const RunnerLimits limits_;
  std::vector<int32_t> kv_;  // token in each position of each block
  std::deque<Step> under_way_;
  std::vector<SampleResult> drawn_;  // by the step submitted last
  int64_t rows_ahead_ = 0;
  int64_t steps_ = 0;
  int32_t largest_step_ = 0;
};

}  // namespace nibble::testing
