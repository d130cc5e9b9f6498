// SPDX-License-Identifier: Apache-2.0
// What the next step computes. Pure: no clock, device or lock; the same events give the same plans.
// Steps run in the order in which they were planned, so one may be planned before the last is done:
// its rows, and a token for each that it draws, count as there once it is committed.
//
//   decode first   every running sequence that lacks one token gets its row
//   admit          waiting sequences in order of arrival while there is a place and KV blocks for
//                  all that they must compute; nobody overtakes the head
//   prefill        the rest of the token budget, in chunks, in order of arrival
//   grow           a sequence that fills its last block gets another; when there is none, a victim
//                  gives up all of its blocks and will be recomputed: first those paused by a slow
//                  reader, then those that wait, then the latest to arrive. The oldest always
//                  moves, so everything ends.
//
// Choices of one request may share its prompt: the followers wait until the first has computed it,
// take references to its full blocks and compute the rest themselves. No block is ever copied, and
// a shared block is never written.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "engine/serve/kv_blocks.h"
#include "engine/serve/request.h"

namespace nibble {

using SequenceId = uint64_t;  // ascending in order of arrival; never 0

struct SchedulerLimits {
  int32_t max_sequences = 0;                // running at once, >= 1
  int32_t token_budget = 0;                 // rows of one step, > max_sequences
  int32_t prefill_chunk = 0;                // rows of one sequence in one step, >= 1
  int32_t max_logit_rows = 0;               // rows of logits in one step, >= max_sequences
  int32_t kv_blocks = 0;                    // >= 1
  std::chrono::nanoseconds slow_reader{0};  // a paused sequence ends after this
};

struct SequenceSpec {
  SequenceId id = 0;
  int32_t prompt_tokens = 0;   // >= 1
  int32_t max_tokens = 0;      // prompt_tokens + max_tokens fit into the pool
  bool score_prompt = false;   // logits of all prompt rows but the last are wanted
  SequenceId shares_with = 0;  // an earlier sequence with the same prompt; 0 = none
  SteadyTime deadline = SteadyTime::max();
};

struct PlannedSequence {
  SequenceId id = 0;
  int32_t start = 0;  // position of its first row
  int32_t rows = 0;
  // Rows at positions [score_begin, score_end) have logits for the prompt's log-probabilities.
  int32_t score_begin = 0;
  int32_t score_end = 0;
  bool draw = false;  // the last row has logits from which the next token is drawn
};

struct EndedSequence {
  SequenceId id = 0;
  FinishReason reason = FinishReason::kNone;  // kDeadline or kSlowReader
};

struct StepPlan {
  std::vector<PlannedSequence> sequences;
  int32_t rows = 0;
  int32_t logit_rows = 0;
  std::vector<SequenceId> admitted;   // in order
  std::vector<SequenceId> preempted;  // in order
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  // ---- Events, never between Plan and Commit. Unknown ids are ignored: a sequence may have ended
  // meanwhile.
  void Add(const SequenceSpec& spec);
  // Finished, cancelled or failed. Its blocks are free: a step that still uses them runs before any
  // that is planned from now on.
  void Remove(SequenceId id);
  void Pause(SequenceId id, SteadyTime now);  // its reader is slow: not planned until Resume
  void Resume(SequenceId id);
  // Removes those whose deadline is not after `now` or whose reader was slow for too long, and
  // appends them to `ended`.
  void Expire(SteadyTime now, std::vector<EndedSequence>* ended);

  // Decides the next step; `plan` is overwritten. An empty plan is no step: it is not committed.
  void Plan(StepPlan* plan);
  // The planned step will run: its rows are in the cache, and what it draws is known, for every
  // later step. A sequence that has drawn all of its max_tokens waits for Remove.
  void Commit();

  // ---- State
  // KV blocks of a sequence in order of position; valid until the next event.
  std::span<const int32_t> blocks(SequenceId id) const;
  bool Contains(SequenceId id) const { return sequences_.contains(id); }
  int32_t running() const { return static_cast<int32_t>(running_.size()); }
  int32_t waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int32_t paused() const;
  int64_t queued_tokens() const;  // rows that the waiting ones need
  uint64_t preemptions() const { return preemptions_; }
  const KvBlocks& kv() const { return kv_; }
  // Whether block references and lists agree with each other. For tests; O(state).
  bool Consistent() const;

 private:
  struct Sequence {
    SequenceSpec spec;
    int32_t known = 0;     // tokens of prompt and output so far
    int32_t computed = 0;  // of those, in the cache
    int32_t scored = 0;    // prompt rows whose logits were delivered
    bool running = false;
    bool paused = false;
    SequenceId awaits = 0;  // shares the prompt of this one, which is not computed yet
    SteadyTime paused_since;
    int32_t planned = 0;  // rows in the step that is planned and not committed
    int32_t planned_scored = 0;
    bool planned_draw = false;
    std::vector<int32_t> blocks;

    int32_t pending() const { return known - computed; }
    int32_t num_blocks() const { return static_cast<int32_t>(blocks.size()); }
  };

  Sequence* Find(SequenceId id);
  void PlanDecodes(StepPlan* plan);
  void Admit(StepPlan* plan);
  void PlanPrefills(StepPlan* plan);
  void PlanRows(Sequence& sequence, StepPlan* plan);
  bool TryAdmit(Sequence& sequence, StepPlan* plan);
  // The next one to give up its blocks or its place, or nullptr. Admission takes them only from
  // those that are paused, or, when nothing runs, from those that wait.
  Sequence* Victim(const Sequence& beneficiary, bool for_admission);
  void Preempt(Sequence& sequence, StepPlan* plan);
  void Erase(SequenceId id);
  void ShareWithFollowers(const Sequence& leader);

  const SchedulerLimits limits_;
  KvBlocks kv_;
  std::map<SequenceId, Sequence> sequences_;
  std::vector<Sequence*> running_;  // by id
  std::vector<Sequence*> waiting_;  // by id
  std::vector<SequenceId> in_step_;
  std::vector<Sequence*> ready_;  // scratch of PlanDecodes
  uint64_t preemptions_ = 0;
};

}  // namespace nibble
