// SPDX-License-Identifier: Apache-2.0
#include "engine/serve/scheduler.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/ops.h"

namespace nibble {
namespace {

int32_t BlocksFor(int32_t tokens) { return (tokens + kKvBlockTokens - 1) / kKvBlockTokens; }

// The two lists are kept in order of arrival, whatever leaves and comes back.
template <typename T>
void InsertById(std::vector<T*>& list, T* sequence) {
  const auto at = std::lower_bound(list.begin(), list.end(), sequence,
                                   [](const T* a, const T* b) { return a->spec.id < b->spec.id; });
  list.insert(at, sequence);
}

template <typename T>
void EraseFrom(std::vector<T*>& list, const T* sequence) {
  const auto at = std::find(list.begin(), list.end(), sequence);
  NIBBLE_CHECK(at != list.end());
  list.erase(at);
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits), kv_(limits.kv_blocks) {
  NIBBLE_CHECK(limits.max_sequences >= 1 && limits.token_budget > limits.max_sequences);
  NIBBLE_CHECK(limits.prefill_chunk >= 1 && limits.max_logit_rows >= limits.max_sequences);
}

Scheduler::Sequence* Scheduler::Find(SequenceId id) {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? nullptr : &found->second;
}

// ---- Events

void Scheduler::Add(const SequenceSpec& spec) {
  NIBBLE_CHECK(sequences_.empty() || sequences_.rbegin()->first < spec.id);
  NIBBLE_CHECK(spec.prompt_tokens >= 1 && spec.max_tokens >= 0);
  NIBBLE_CHECK(BlocksFor(spec.prompt_tokens + spec.max_tokens) <= kv_.total());
  Sequence& sequence = sequences_[spec.id];
  sequence.spec = spec;
  sequence.known = spec.prompt_tokens;
  // Worth waiting for: a full block below the prompt's last token, or the prompt's scores, which
  // are to be there before any choice's first token.
  const Sequence* leader = Find(spec.shares_with);
  if (leader != nullptr && leader->computed < spec.prompt_tokens - 1 &&
      (spec.prompt_tokens > kKvBlockTokens || leader->spec.score_prompt)) {
    sequence.awaits = spec.shares_with;
  }
  waiting_.push_back(&sequence);
}

void Scheduler::Remove(SequenceId id) {
  NIBBLE_CHECK(in_step_.empty());
  if (Find(id) != nullptr) Erase(id);
}

void Scheduler::Pause(SequenceId id, SteadyTime now) {
  Sequence* sequence = Find(id);
  if (sequence == nullptr || sequence->paused) return;
  sequence->paused = true;
  sequence->paused_since = now;
}

void Scheduler::Resume(SequenceId id) {
  if (Sequence* sequence = Find(id)) sequence->paused = false;
}

void Scheduler::Expire(SteadyTime now, std::vector<EndedSequence>* ended) {
  NIBBLE_CHECK(in_step_.empty());
  const size_t first = ended->size();
  for (const auto& [id, sequence] : sequences_) {
    if (sequence.spec.deadline <= now) {
      ended->push_back({id, FinishReason::kDeadline});
    } else if (sequence.paused && now - sequence.paused_since >= limits_.slow_reader) {
      ended->push_back({id, FinishReason::kSlowReader});
    }
  }
  for (size_t i = first; i < ended->size(); ++i) Erase((*ended)[i].id);
}

void Scheduler::Erase(SequenceId id) {
  Sequence& sequence = sequences_.at(id);
  kv_.Release(&sequence.blocks);
  EraseFrom(sequence.running ? running_ : waiting_, &sequence);
  sequences_.erase(id);
  for (Sequence* other : waiting_) {
    if (other->awaits == id) other->awaits = 0;
  }
}

// ---- Planning

void Scheduler::Plan(StepPlan* plan) {
  NIBBLE_CHECK(in_step_.empty());
  plan->sequences.clear();
  plan->rows = plan->logit_rows = 0;
  plan->admitted.clear();
  plan->preempted.clear();
  PlanDecodes(plan);
  Admit(plan);
  PlanPrefills(plan);
  for (const PlannedSequence& planned : plan->sequences) in_step_.push_back(planned.id);
}

void Scheduler::PlanDecodes(StepPlan* plan) {
  ready_.clear();  // A copy: preemption changes running_.
  for (Sequence* sequence : running_) {
    if (!sequence->paused && sequence->pending() == 1) ready_.push_back(sequence);
  }
  for (Sequence* sequence : ready_) {
    while (sequence->running && BlocksFor(sequence->known) > sequence->num_blocks()) {
      if (kv_.Take(1, &sequence->blocks)) continue;
      Sequence* victim = Victim(*sequence, /*for_admission=*/false);
      Preempt(victim != nullptr ? *victim : *sequence, plan);
    }
    if (sequence->running) PlanRows(*sequence, plan);
  }
}

void Scheduler::Admit(StepPlan* plan) {
  for (size_t i = 0; i < waiting_.size();) {
    Sequence& head = *waiting_[i];
    if (head.paused || head.awaits != 0) {
      ++i;
      continue;
    }
    if (!TryAdmit(head, plan)) return;
    i = 0;  // Making room may have put paused ones in front.
  }
}

bool Scheduler::TryAdmit(Sequence& sequence, StepPlan* plan) {
  // Every running sequence can cross one block border before the newcomer is preempted again.
  const auto lacks_room = [&] {
    const auto growing = static_cast<int32_t>(std::count_if(
        running_.begin(), running_.end(), [](const Sequence* other) { return !other->paused; }));
    const int32_t need = BlocksFor(sequence.known) - sequence.num_blocks();
    return running() >= limits_.max_sequences || kv_.free() < need + growing;
  };
  while (lacks_room()) {
    Sequence* victim = Victim(sequence, /*for_admission=*/true);
    if (victim == nullptr) return false;
    Preempt(*victim, plan);
  }
  const bool taken = kv_.Take(BlocksFor(sequence.known) - sequence.num_blocks(), &sequence.blocks);
  NIBBLE_CHECK(taken);
  EraseFrom(waiting_, &sequence);
  sequence.running = true;
  InsertById(running_, &sequence);
  plan->admitted.push_back(sequence.spec.id);
  return true;
}

void Scheduler::PlanPrefills(StepPlan* plan) {
  for (Sequence* sequence : running_) {
    if (!sequence->paused && sequence->planned == 0) PlanRows(*sequence, plan);
  }
}

void Scheduler::PlanRows(Sequence& sequence, StepPlan* plan) {
  const SequenceSpec& spec = sequence.spec;
  const int32_t logits_left = limits_.max_logit_rows - plan->logit_rows;
  PlannedSequence planned;
  planned.id = spec.id;
  planned.start = sequence.computed;
  planned.rows =
      std::min({sequence.pending(), limits_.token_budget - plan->rows, limits_.prefill_chunk});
  if (spec.score_prompt) {
    planned.rows =
        std::min(planned.rows, std::max(sequence.scored - planned.start, 0) + logits_left + 1);
  }
  int32_t logits = 0;
  for (; planned.rows > 0; --planned.rows) {
    const int32_t end = planned.start + planned.rows;
    planned.score_begin = std::max(planned.start, sequence.scored);
    planned.score_end = spec.score_prompt ? std::min(end, spec.prompt_tokens - 1) : 0;
    planned.score_begin = std::min(planned.score_begin, planned.score_end);
    planned.draw = end == sequence.known && spec.max_tokens > 0;
    logits = planned.score_end - planned.score_begin + (planned.draw ? 1 : 0);
    if (logits <= logits_left) break;
  }
  if (planned.rows <= 0) return;
  sequence.planned = planned.rows;
  sequence.planned_scored = planned.score_end;
  sequence.planned_draw = planned.draw;
  plan->rows += planned.rows;
  plan->logit_rows += logits;
  plan->sequences.push_back(planned);
}

Scheduler::Sequence* Scheduler::Victim(const Sequence& beneficiary, bool for_admission) {
  const bool alone = running_.empty();
  const auto frees_a_block = [&](const Sequence& sequence) {
    return std::any_of(sequence.blocks.begin(), sequence.blocks.end(),
                       [&](int32_t block) { return kv_.refs(block) == 1; });
  };
  const auto rank = [](const Sequence& s) { return s.paused ? 2 : (s.running ? 0 : 1); };
  Sequence* best = nullptr;
  for (auto& [id, candidate] : sequences_) {
    if (&candidate == &beneficiary || candidate.planned > 0) continue;
    if (candidate.running) {
      // Besides the paused ones, nobody gives up his place to one who came later or still waits.
      if (!candidate.paused && (for_admission || id < beneficiary.spec.id)) continue;
    } else {
      // A prefix shared with others is given up only where nothing else can make room.
      if (candidate.blocks.empty() || !(alone || frees_a_block(candidate))) continue;
      if (!candidate.paused && for_admission && !alone) continue;
    }
    if (best == nullptr || rank(candidate) >= rank(*best)) best = &candidate;
  }
  return best;
}

void Scheduler::Preempt(Sequence& sequence, StepPlan* plan) {
  kv_.Release(&sequence.blocks);
  sequence.computed = 0;
  if (!sequence.running) return;
  EraseFrom(running_, &sequence);
  sequence.running = false;
  InsertById(waiting_, &sequence);
  plan->preempted.push_back(sequence.spec.id);
  ++preemptions_;
}

void Scheduler::Commit() {
  NIBBLE_CHECK(!in_step_.empty());
  for (const SequenceId id : in_step_) {
    Sequence& sequence = sequences_.at(id);
    sequence.computed += sequence.planned;
    sequence.scored = std::max(sequence.scored, sequence.planned_scored);
    // The last token of all is drawn, never computed.
    const int32_t most = sequence.spec.prompt_tokens + sequence.spec.max_tokens - 1;
    if (sequence.planned_draw && sequence.known < most) ++sequence.known;
    sequence.planned = sequence.planned_scored = 0;
    sequence.planned_draw = false;
    if (sequence.computed >= sequence.spec.prompt_tokens - 1) ShareWithFollowers(sequence);
  }
  in_step_.clear();
}

void Scheduler::ShareWithFollowers(const Sequence& leader) {
  for (Sequence* follower : waiting_) {
    if (follower->awaits != leader.spec.id) continue;
    follower->awaits = 0;
    const int32_t full = (follower->spec.prompt_tokens - 1) / kKvBlockTokens;
    kv_.Share(std::span(leader.blocks).first(static_cast<size_t>(full)), &follower->blocks);
    follower->computed = full * kKvBlockTokens;
  }
}

// ---- State

std::span<const int32_t> Scheduler::blocks(SequenceId id) const {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? std::span<const int32_t>() : found->second.blocks;
}

int32_t Scheduler::paused() const {
  int32_t count = 0;
  for (const auto& [id, sequence] : sequences_) count += sequence.paused ? 1 : 0;
  return count;
}

int64_t Scheduler::queued_tokens() const {
  int64_t sum = 0;
  for (const Sequence* sequence : waiting_) sum += sequence->pending();
  return sum;
}

bool Scheduler::Consistent() const {
  std::vector<int32_t> refs(static_cast<size_t>(kv_.total()), 0);
  for (const auto& [id, sequence] : sequences_) {
    for (const int32_t block : sequence.blocks) ++refs[static_cast<size_t>(block)];
    const int32_t capacity = static_cast<int32_t>(sequence.blocks.size()) * kKvBlockTokens;
    if (sequence.computed > sequence.known || sequence.computed > capacity) return false;
    const auto& list = sequence.running ? running_ : waiting_;
    if (std::count(list.begin(), list.end(), &sequence) != 1) return false;
  }
  if (running_.size() + waiting_.size() != sequences_.size()) return false;
  int32_t used = 0;
  for (int32_t block = 0; block < kv_.total(); ++block) {
    if (kv_.refs(block) != refs[static_cast<size_t>(block)]) return false;
    used += kv_.refs(block) > 0 ? 1 : 0;
  }
  return used == kv_.used();
}

}  // namespace nibble
