// SPDX-License-Identifier: Apache-2.0
// The scheduler under random events, checked in every step against what must always hold:
//   no block is leaked, lost or written while shared
//   every row is computed once its predecessors are in the sequence's own blocks
//   no step is over a budget, and decoding comes first
//   sequences are admitted in order of arrival
//   nothing that may run is starved
// What a step drew is delivered after the next has been planned, or before, by turns.
// NIBBLE_MODEL_CHECK_STEPS sets the number of steps (default: a million).
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "engine/serve/scheduler.h"
#include "kernels/ops.h"

namespace nibble {
namespace {

constexpr int kSlowReaderMs = 400;
constexpr int64_t kPatience = 3000;  // steps without a row after which a sequence counts as starved

int64_t Steps() {
  const char* wanted = std::getenv("NIBBLE_MODEL_CHECK_STEPS");
  return wanted != nullptr ? std::atoll(wanted) : 1000000;
}

class ModelCheck {
 public:
  ModelCheck(uint64_t seed, const SchedulerLimits& limits)
      : random_(seed), limits_(limits), scheduler_(limits), blocks_(limits.kv_blocks) {}

  void Run(int64_t steps) {
    for (int64_t i = 0; i < steps && !testing::Test::HasFailure(); ++i) {
      ++now_;
      Arrivals();
      Disturbances();
      Expiry();
      Step();
      ASSERT_TRUE(scheduler_.Consistent()) << "step " << i;
    }
    while (!live_.empty() && !testing::Test::HasFailure()) {  // Everything ends.
      ++now_;
      for (auto& [id, s] : live_) Resume(id, s);
      Expiry();
      Step();
    }
    EXPECT_EQ(scheduler_.kv().used(), 0);
    EXPECT_EQ(scheduler_.running() + scheduler_.waiting(), 0);
    EXPECT_GT(finished_, steps / 100) << "the check must see sequences finish";
    EXPECT_GT(scheduler_.preemptions(), static_cast<uint64_t>(steps / 1000))
        << "the check must see preemptions";
  }

 private:
  struct Mirror {
    SequenceSpec spec;
    SequenceId group = 0;  // the sequence whose prompt it has
    int32_t known = 0;
    bool running = false;
    bool paused = false;
    bool awaits = false;
    bool exhausted = false;  // nothing is left to compute: it waits for its last delivery
    int32_t furthest = 0;    // rows in the cache when it was last seen in a step
    int64_t waits_since = 0;
  };
  // What a block holds: the first `filled` of its positions, of one sequence or one prompt.
  struct Block {
    SequenceId owner = 0;
    int32_t index = 0;
    int32_t filled = 0;
  };

  int64_t Below(int64_t bound) {
    return static_cast<int64_t>(random_() % static_cast<uint64_t>(bound));
  }
  bool Chance(int per_thousand) { return Below(1000) < per_thousand; }
  SteadyTime Now() const { return SteadyTime(std::chrono::milliseconds(now_)); }

  void Arrivals() {
    if (live_.size() >= 24 || !Chance(60)) return;
    SequenceSpec spec;
    spec.prompt_tokens = 1 + static_cast<int32_t>(Chance(500) ? Below(20) : Below(200));
    const int32_t room = limits_.kv_blocks * kKvBlockTokens - spec.prompt_tokens;
    spec.max_tokens = static_cast<int32_t>(Below(std::min(room, 150) + 1));
    if (Chance(100)) spec.deadline = Now() + std::chrono::milliseconds(Below(600));
    const int64_t choices = Chance(200) ? 1 + Below(4) : 1;
    const SequenceId leader = next_id_;
    for (int64_t i = 0; i < choices; ++i) {
      spec.id = next_id_++;
      spec.shares_with = i == 0 ? 0 : leader;
      spec.score_prompt = i == 0 && Chance(100);
      scheduler_.Add(spec);
      Mirror& mirror = live_[spec.id];
      mirror.spec = spec;
      mirror.group = leader;
      mirror.known = spec.prompt_tokens;
      mirror.waits_since = now_;
      const bool worth_waiting = spec.prompt_tokens > kKvBlockTokens ||
                                 (spec.prompt_tokens > 1 && live_.at(leader).spec.score_prompt);
      mirror.awaits = i > 0 && worth_waiting;
    }
  }

  void Disturbances() {
    for (auto& [id, s] : live_) {
      if (!s.paused && Chance(4)) {
        s.paused = true;
        scheduler_.Pause(id, Now());
      } else if (s.paused && Chance(15)) {
        Resume(id, s);
      }
    }
    if (!live_.empty() && Chance(10)) Remove(RandomId());
  }

  void Resume(SequenceId id, Mirror& s) {
    if (s.paused) s.waits_since = now_;
    s.paused = false;
    scheduler_.Resume(id);
  }

  SequenceId RandomId() {
    auto at = live_.begin();
    std::advance(at, Below(static_cast<int64_t>(live_.size())));
    return at->first;
  }

  void Remove(SequenceId id) {
    scheduler_.Remove(id);
    Forget(id);
  }
  void Forget(SequenceId id) {
    live_.erase(id);
    for (auto& [other, s] : live_) s.awaits = s.awaits && s.spec.shares_with != id;
  }

  void Expiry() {
    std::vector<EndedSequence> ended;
    scheduler_.Expire(Now(), &ended);
    for (const EndedSequence& one : ended) {
      ASSERT_TRUE(live_.contains(one.id));
      const Mirror& s = live_.at(one.id);
      if (one.reason == FinishReason::kDeadline) {
        EXPECT_LE(s.spec.deadline, Now());
      } else {
        EXPECT_TRUE(s.paused);
      }
      Forget(one.id);
    }
    for (const auto& [id, s] : live_) EXPECT_GT(s.spec.deadline, Now());
  }

  void Step() {
    scheduler_.Plan(&plan_);
    CheckAdmissions();
    CheckBudgets();
    for (const PlannedSequence& planned : plan_.sequences) CheckRows(planned);
    CheckProgress();
    if (!plan_.sequences.empty()) {
      scheduler_.Commit();
      for (const PlannedSequence& planned : plan_.sequences) Computed(planned);
    }
    // Something may end while the device computes.
    if (!live_.empty() && Chance(30)) Remove(RandomId());
    for (const PlannedSequence& planned : under_way_) Deliver(planned);
    under_way_ = plan_.sequences;
    if (Chance(500)) {
      for (const PlannedSequence& planned : std::exchange(under_way_, {})) Deliver(planned);
    }
  }

  void CheckAdmissions() {
    for (const SequenceId id : plan_.preempted) live_.at(id).running = false;
    for (const SequenceId id : plan_.admitted) {
      EXPECT_FALSE(live_.at(id).paused);
      live_.at(id).running = true;
    }
    for (const SequenceId id : plan_.admitted) {
      for (auto at = live_.begin(); at != live_.end() && at->first < id; ++at) {
        EXPECT_TRUE(at->second.running || at->second.paused || at->second.awaits)
            << id << " overtook " << at->first;
      }
    }
  }

  void CheckBudgets() {
    int32_t rows = 0, logits = 0, running = 0;
    bool prefilling = false;
    for (const PlannedSequence& planned : plan_.sequences) {
      rows += planned.rows;
      logits += planned.score_end - planned.score_begin + (planned.draw ? 1 : 0);
      EXPECT_LE(planned.rows, limits_.prefill_chunk);
      const bool decodes = planned.start >= live_.at(planned.id).spec.prompt_tokens &&
                           live_.at(planned.id).known - planned.start == 1;
      EXPECT_FALSE(decodes && prefilling) << "a decoding row behind a prompt";
      prefilling |= !decodes && planned.rows > 1;
    }
    for (const auto& [id, s] : live_) running += s.running ? 1 : 0;
    EXPECT_EQ(rows, plan_.rows);
    EXPECT_EQ(logits, plan_.logit_rows);
    EXPECT_LE(rows, limits_.token_budget);
    EXPECT_LE(logits, limits_.max_logit_rows);
    EXPECT_LE(running, limits_.max_sequences);
    EXPECT_EQ(running, scheduler_.running());
  }

  // Who wrote position `index * kKvBlockTokens` and behind it: prompts may be shared.
  static SequenceId Owner(const Mirror& s, int32_t index) {
    const int32_t shared = (s.spec.prompt_tokens - 1) / kKvBlockTokens;
    return index < shared ? s.group : s.spec.id;
  }

  void CheckRows(const PlannedSequence& planned) {
    ASSERT_TRUE(live_.contains(planned.id));
    Mirror& s = live_.at(planned.id);
    EXPECT_TRUE(s.running && !s.paused && !s.awaits);
    EXPECT_GE(planned.rows, 1);
    EXPECT_LE(planned.start + planned.rows, s.known);
    EXPECT_EQ(planned.draw, planned.start + planned.rows == s.known && s.spec.max_tokens > 0);
    const std::span<const int32_t> own = scheduler_.blocks(planned.id);
    ASSERT_LE(planned.start + planned.rows, static_cast<int32_t>(own.size()) * kKvBlockTokens);
    const int32_t first = planned.start / kKvBlockTokens;
    for (int32_t index = 0; index * kKvBlockTokens < planned.start; ++index) {
      const Block& block = BlockOf(own, index);
      const int32_t needed = std::min(planned.start - index * kKvBlockTokens, kKvBlockTokens);
      ASSERT_TRUE(block.owner == Owner(s, index) && block.index == index && block.filled >= needed)
          << "sequence " << planned.id << " reads what is not there, block " << index;
    }
    const int32_t last = (planned.start + planned.rows - 1) / kKvBlockTokens;
    for (int32_t index = first; index <= last; ++index) {
      ASSERT_EQ(scheduler_.kv().refs(own[static_cast<size_t>(index)]), 1) << "a shared block";
      const int32_t end = planned.start + planned.rows - index * kKvBlockTokens;
      BlockOf(own, index) = {Owner(s, index), index, std::min(end, kKvBlockTokens)};
    }
  }

  Block& BlockOf(std::span<const int32_t> own, int32_t index) {
    return blocks_[static_cast<size_t>(own[static_cast<size_t>(index)])];
  }

  void CheckProgress() {
    bool eligible = false;
    for (const auto& [id, s] : live_) {
      if (s.paused || s.awaits || s.exhausted) continue;
      eligible = true;
      ASSERT_LT(now_ - s.waits_since, kPatience) << "sequence " << id << " is starved";
    }
    // What has drawn its last token holds its place until that is delivered.
    EXPECT_TRUE(!eligible || !plan_.sequences.empty() || !under_way_.empty())
        << "an idle step with work to do";
  }

  void Computed(const PlannedSequence& planned) {
    Mirror& s = live_.at(planned.id);
    // Only what was never reached before counts: recomputing is not progress.
    if (planned.start + planned.rows > s.furthest) {
      s.furthest = planned.start + planned.rows;
      s.waits_since = now_;
    }
    if (planned.start + planned.rows >= s.spec.prompt_tokens - 1) {
      for (auto& [other, follower] : live_) {
        if (follower.awaits && follower.spec.shares_with == planned.id) {
          follower.awaits = false;
          follower.waits_since = now_;
        }
      }
    }
    const int32_t limit = s.spec.prompt_tokens + s.spec.max_tokens;
    if (planned.draw && s.known < limit - 1) ++s.known;
    s.exhausted = planned.start + planned.rows == limit - (planned.draw ? 1 : 0);
  }

  // The host learns what the step drew, perhaps after it has planned another.
  void Deliver(const PlannedSequence& planned) {
    const auto found = live_.find(planned.id);
    if (found == live_.end()) return;
    const SequenceSpec& spec = found->second.spec;
    const int32_t end = planned.start + planned.rows;
    const bool scored = spec.max_tokens == 0 && end == spec.prompt_tokens;
    const bool last = planned.draw && end + 1 == spec.prompt_tokens + spec.max_tokens;
    if (scored || last || (planned.draw && Chance(10))) {
      ++finished_;
      Remove(planned.id);
    }
  }

  std::mt19937_64 random_;
  const SchedulerLimits limits_;
  Scheduler scheduler_;
  StepPlan plan_;
  std::vector<PlannedSequence> under_way_;  // steps not delivered yet
  std::map<SequenceId, Mirror> live_;
  std::vector<Block> blocks_;
  SequenceId next_id_ = 1;
  int64_t now_ = 0;
  int64_t finished_ = 0;
};

SchedulerLimits Limits(int32_t sequences, int32_t budget, int32_t chunk, int32_t logits,
                       int32_t blocks) {
  SchedulerLimits limits;
  limits.max_sequences = sequences;
  limits.token_budget = budget;
  limits.prefill_chunk = chunk;
  limits.max_logit_rows = logits;
  limits.kv_blocks = blocks;
  limits.slow_reader = std::chrono::milliseconds(kSlowReaderMs);
  return limits;
}

TEST(SchedulerModel, HoldsWithAFewPlacesAndATightPool) {
  ModelCheck(1, Limits(4, 40, 32, 4, 9)).Run(Steps() / 2);
}

TEST(SchedulerModel, HoldsWithATinyPool) {
  ModelCheck(2, Limits(8, 48, 48, 12, 6)).Run(Steps() / 4);
}

TEST(SchedulerModel, HoldsWithASmallBudget) {
  ModelCheck(3, Limits(3, 4, 4, 3, 12)).Run(Steps() / 4);
}

}  // namespace
}  // namespace nibble
