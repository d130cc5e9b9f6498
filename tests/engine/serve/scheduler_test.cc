// SPDX-License-Identifier: Apache-2.0
// The scheduler's decisions as tables of events and what they lead to.
//
//   add ID PROMPT MAX [score] [share LEADER] [deadline MS]
//   remove ID     pause ID MS     resume ID
//   expire MS     which sequences end, and why
//   step          the next step, committed
//   run N         N steps, of which the last is shown
//   kv            blocks in use
//
// A step reads "+3 -2 1:64+1! 3:0+40 3:0+8[0,8)": sequence 3 was admitted, 2 preempted, 1 computes
// one row from position 64 and draws (!), 3 computes 40 rows from 0; [a,b) are positions that are
// scored.
#include "engine/serve/scheduler.h"

#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

namespace nibble {
namespace {

struct Line {
  const char* event;
  const char* decision;
};

struct Table {
  const char* name;
  SchedulerLimits limits;
  std::vector<Line> lines;
};

SchedulerLimits Limits(int32_t sequences, int32_t budget, int32_t chunk, int32_t logits,
                       int32_t blocks) {
  SchedulerLimits limits;
  limits.max_sequences = sequences;
  limits.token_budget = budget;
  limits.prefill_chunk = chunk;
  limits.max_logit_rows = logits;
  limits.kv_blocks = blocks;
  limits.slow_reader = std::chrono::milliseconds(100);
  return limits;
}

SteadyTime At(int64_t ms) { return SteadyTime(std::chrono::milliseconds(ms)); }

class Script {
 public:
  explicit Script(const SchedulerLimits& limits) : scheduler_(limits) {}

  std::string Run(const std::string& event) {
    std::istringstream in(event);
    std::string verb;
    in >> verb;
    if (verb == "add") {
      Add(in);
    } else if (verb == "remove") {
      scheduler_.Remove(Number(in));
    } else if (verb == "pause") {
      const SequenceId id = Number(in);
      scheduler_.Pause(id, At(static_cast<int64_t>(Number(in))));
    } else if (verb == "resume") {
      scheduler_.Resume(Number(in));
    } else if (verb == "expire") {
      return Expire(At(static_cast<int64_t>(Number(in))));
    } else if (verb == "step" || verb == "run") {
      for (uint64_t i = verb == "step" ? 1 : Number(in); i > 0; --i) {
        scheduler_.Plan(&plan_);
        if (!plan_.sequences.empty()) scheduler_.Commit();
      }
      return Show();
    } else if (verb == "kv") {
      return std::to_string(scheduler_.kv().used());
    } else {
      ADD_FAILURE() << "unknown event " << event;
    }
    return "";
  }

  bool Consistent() const { return scheduler_.Consistent(); }

 private:
  static uint64_t Number(std::istringstream& in) {
    uint64_t value = 0;
    in >> value;
    return value;
  }

  void Add(std::istringstream& in) {
    SequenceSpec spec;
    in >> spec.id >> spec.prompt_tokens >> spec.max_tokens;
    for (std::string word; in >> word;) {
      if (word == "score") spec.score_prompt = true;
      if (word == "share") spec.shares_with = Number(in);
      if (word == "deadline") spec.deadline = At(static_cast<int64_t>(Number(in)));
    }
    scheduler_.Add(spec);
  }

  std::string Expire(SteadyTime now) {
    std::vector<EndedSequence> ended;
    scheduler_.Expire(now, &ended);
    std::ostringstream out;
    for (const EndedSequence& one : ended) {
      out << (out.tellp() > 0 ? " " : "") << one.id << ":" << FinishReasonName(one.reason);
    }
    return out.str();
  }

  std::string Show() const {
    std::ostringstream out;
    const auto space = [&out] { out << (out.tellp() > 0 ? " " : ""); };
    for (const SequenceId id : plan_.admitted) space(), out << "+" << id;
    for (const SequenceId id : plan_.preempted) space(), out << "-" << id;
    for (const PlannedSequence& p : plan_.sequences) {
      space();
      out << p.id << ":" << p.start << "+" << p.rows;
      if (p.score_end > p.score_begin) out << "[" << p.score_begin << "," << p.score_end << ")";
      if (p.draw) out << "!";
    }
    return out.str();
  }

  Scheduler scheduler_;
  StepPlan plan_;
};

class SchedulerTable : public testing::TestWithParam<Table> {};

TEST_P(SchedulerTable, EventsLeadToDecisions) {
  Script script(GetParam().limits);
  for (size_t i = 0; i < GetParam().lines.size(); ++i) {
    const Line& line = GetParam().lines[i];
    EXPECT_EQ(script.Run(line.event), line.decision) << "line " << i << ": " << line.event;
    ASSERT_TRUE(script.Consistent()) << "line " << i << ": " << line.event;
  }
}

const Table kTables[] = {
    {"NothingToDoIsNoStep", Limits(4, 32, 32, 4, 8), {{"step", ""}, {"step", ""}}},
    {"APromptIsComputedAndThenOneRowAStep",
     Limits(4, 32, 32, 4, 8),
     {{"add 1 5 3", ""},
      {"step", "+1 1:0+5!"},
      {"step", "1:5+1!"},
      {"step", "1:6+1!"},
      {"remove 1", ""},
      {"step", ""},
      {"kv", "0"}}},
    {"AnUnknownSequenceIsIgnored",
     Limits(4, 32, 32, 4, 8),
     {{"remove 7", ""}, {"pause 7 0", ""}, {"resume 7", ""}, {"step", ""}}},
    {"ALongPromptIsCutIntoChunks",
     Limits(4, 32, 20, 4, 8),
     {{"add 1 50 3", ""}, {"step", "+1 1:0+20"}, {"step", "1:20+20"}, {"step", "1:40+10!"}}},
    {"DecodeComesFirstAndPromptsShareTheRestOfTheBudget",
     Limits(4, 32, 32, 4, 8),
     {{"add 1 5 9", ""},
      {"step", "+1 1:0+5!"},
      {"add 2 40 9", ""},
      {"add 3 10 9", ""},
      {"step", "+2 +3 1:5+1! 2:0+31"},
      {"step", "1:6+1! 2:31+9! 3:0+10!"},
      {"step", "1:7+1! 2:40+1! 3:10+1!"}}},
    {"NoMoreRunThanThereArePlaces",
     Limits(2, 32, 32, 4, 8),
     {{"add 1 3 9", ""},
      {"add 2 3 9", ""},
      {"add 3 3 9", ""},
      {"step", "+1 +2 1:0+3! 2:0+3!"},
      {"step", "1:3+1! 2:3+1!"},
      {"remove 1", ""},
      {"step", "+3 2:4+1! 3:0+3!"}}},
    {"NobodyOvertakesTheHeadThatWaitsForBlocks",
     Limits(4, 300, 300, 4, 5),
     {{"add 1 120 60", ""},
      {"step", "+1 1:0+120!"},  // 2 of 5 blocks
      {"add 2 250 1", ""},      // needs 4
      {"add 3 3 1", ""},        // would fit
      {"step", "1:120+1!"},
      {"remove 1", ""},
      // One block is free, but 2 may need it: 3 waits until then.
      {"step", "+2 2:0+250!"},
      {"kv", "4"}}},
    {"ABlockIsAddedWhenTheLastIsFull",
     Limits(4, 100, 100, 4, 8),
     {{"add 1 63 9", ""},
      {"step", "+1 1:0+63!"},
      {"kv", "1"},
      {"step", "1:63+1!"},
      {"kv", "1"},
      {"step", "1:64+1!"},
      {"kv", "2"}}},
    {"ANewcomerLeavesTheRunningOnesABlockEachToGrowInto",
     Limits(4, 200, 200, 4, 4),
     {{"add 1 63 80", ""},
      {"add 2 60 80", ""},
      {"step", "+1 +2 1:0+63! 2:0+60!"},
      {"add 3 60 8", ""},
      {"step", "1:63+1! 2:60+1!"},
      {"step", "1:64+1! 2:61+1!"},
      {"run 3", "1:67+1! 2:64+1!"},
      {"kv", "4"}}},
    {"WithoutFreeBlocksTheLatestGivesWayToOneThatGrows",
     Limits(4, 200, 200, 4, 6),
     {{"add 1 129 99", ""},
      {"add 2 70 99", ""},
      {"step", "+1 +2 1:0+129! 2:0+70!"},
      {"run 60", "1:188+1! 2:129+1!"},  // 2 has grown into the last block
      {"kv", "6"},
      {"run 3", "1:191+1! 2:132+1!"},
      {"step", "-2 1:192+1!"},
      {"kv", "4"},
      {"step", "1:193+1!"}}},  // 2 needs 3 blocks, and 1 one to grow into
    {"APreemptedSequenceIsRecomputedWithWhatItHadGenerated",
     Limits(2, 200, 200, 4, 3),
     {{"add 1 64 80", ""},
      {"add 2 60 80", ""},
      {"step", "+1 +2 1:0+64! 2:0+60!"},
      {"step", "1:64+1! 2:60+1!"},  // 1 has two blocks, 2 one: the pool is full
      {"step", "1:65+1! 2:61+1!"},
      {"step", "1:66+1! 2:62+1!"},
      {"step", "1:67+1! 2:63+1!"},
      {"step", "-2 1:68+1!"},  // 2 needs a second block and is itself the latest
      {"kv", "2"},
      {"remove 1", ""},
      {"step", "+2 2:0+65!"},  // its prompt and the five tokens it had
      {"step", "2:65+1!"}}},
    {"APausedSequenceIsNotComputed",
     Limits(4, 32, 32, 4, 8),
     {{"add 1 3 9", ""},
      {"add 2 3 9", ""},
      {"step", "+1 +2 1:0+3! 2:0+3!"},
      {"pause 1 0", ""},
      {"step", "2:3+1!"},
      {"resume 1", ""},
      {"step", "1:3+1! 2:4+1!"}}},
    {"APausedSequenceIsTheFirstToGiveItsBlocksUp",
     Limits(4, 200, 200, 4, 4),
     {{"add 1 64 80", ""},
      {"add 2 60 80", ""},
      {"add 3 60 80", ""},
      {"step", "+1 +2 1:0+64! 2:0+60!"},
      {"pause 1 0", ""},
      {"step", "+3 2:60+1! 3:0+60!"},
      {"pause 2 0", ""},
      {"kv", "3"},
      {"step", "3:60+1!"},
      {"resume 1", ""},
      {"step", "1:64+1! 3:61+1!"},  // 1 grows into the last free block
      {"kv", "4"},
      {"add 4 3 5", ""},
      {"step", "-2 1:65+1! 3:62+1!"},  // room for 4 is made of 2's block, and is not enough
      {"kv", "3"},
      {"resume 2", ""},
      {"remove 3", ""},
      {"remove 1", ""},
      {"step", "+2 +4 2:0+62! 4:0+3!"}}},
    {"APausedSequenceGivesItsPlaceToOneThatWaits",
     Limits(1, 32, 32, 4, 8),
     {{"add 1 3 9", ""},
      {"step", "+1 1:0+3!"},
      {"add 2 3 9", ""},
      {"step", "1:3+1!"},
      {"pause 1 0", ""},
      {"step", "+2 -1 2:0+3!"},
      {"resume 1", ""},
      {"step", "2:3+1!"},
      {"remove 2", ""},
      {"step", "+1 1:0+5!"}}},
    {"DeadlinesAndSlowReadersEndWhatTheyConcern",
     Limits(4, 32, 32, 4, 8),
     {{"add 1 3 9 deadline 50", ""},
      {"add 2 3 9", ""},
      {"add 3 3 9 deadline 20", ""},
      {"expire 19", ""},
      {"expire 20", "3:deadline"},
      {"step", "+1 +2 1:0+3! 2:0+3!"},
      {"pause 2 30", ""},
      {"expire 50", "1:deadline"},
      {"expire 129", ""},
      {"expire 130", "2:slow_reader"},
      {"kv", "0"}}},
    {"AReaderThatComesBackInTimeKeepsItsSequence",
     Limits(4, 32, 32, 4, 8),
     {{"add 1 3 9", ""},
      {"step", "+1 1:0+3!"},
      {"pause 1 0", ""},
      {"resume 1", ""},
      {"pause 1 90", ""},
      {"expire 150", ""},
      {"expire 190", "1:slow_reader"}}},
    {"WhatIsRemovedFreesItsBlocksForLaterSteps",
     Limits(4, 32, 32, 4, 8),
     {{"add 1 3 9", ""},
      {"add 2 3 9", ""},
      {"step", "+1 +2 1:0+3! 2:0+3!"},
      {"remove 1", ""},
      {"kv", "1"},
      {"step", "2:3+1!"}}},
    {"WhatHasDrawnAllOfItsTokensWaitsToBeRemoved",
     Limits(1, 32, 32, 4, 8),
     {{"add 1 3 2", ""},
      {"add 2 3 9", ""},
      {"step", "+1 1:0+3!"},
      {"step", "1:3+1!"},
      {"step", ""},
      {"kv", "1"},
      {"remove 1", ""},
      {"step", "+2 2:0+3!"}}},
    {"ChoicesShareTheFullBlocksOfTheirPrompt",
     Limits(4, 200, 200, 4, 8),
     {{"add 1 130 9", ""},
      {"add 2 130 9 share 1", ""},
      {"step", "+1 1:0+130!"},
      {"kv", "3"},
      {"step", "+2 1:130+1! 2:128+2!"},
      {"kv", "4"},
      {"remove 1", ""},
      {"kv", "3"},
      {"step", "2:130+1!"},
      {"remove 2", ""},
      {"kv", "0"}}},
    {"AFirstChoiceThatEndsAtOnceStillLeavesItsPrompt",
     Limits(4, 200, 200, 4, 8),
     {{"add 1 129 1", ""},
      {"add 2 129 1 share 1", ""},
      {"step", "+1 1:0+129!"},
      {"remove 1", ""},
      {"kv", "2"},
      {"step", "+2 2:128+1!"}}},
    {"AShortPromptIsNotWorthWaitingFor",
     Limits(4, 200, 200, 4, 8),
     {{"add 1 64 9", ""}, {"add 2 64 9 share 1", ""}, {"step", "+1 +2 1:0+64! 2:0+64!"}}},
    {"WhenTheFirstChoiceIsGoneTheOthersComputeThemselves",
     Limits(4, 200, 100, 4, 8),
     {{"add 1 130 9", ""},
      {"add 2 130 9 share 1", ""},
      {"step", "+1 1:0+100"},
      {"remove 1", ""},
      {"step", "+2 2:0+100"}}},
    {"AChoiceThatWaitsForItsPromptLetsOthersPass",
     Limits(4, 100, 100, 4, 12),
     {{"add 1 130 9", ""},
      {"add 2 130 9 share 1", ""},
      {"add 3 5 9", ""},
      {"step", "+1 +3 1:0+100"},
      {"step", "1:100+30! 3:0+5!"},
      {"step", "+2 1:130+1! 3:5+1! 2:128+2!"}}},
    {"ScoresTakeLogitsOfEveryPromptRowButTheLast",
     Limits(4, 32, 32, 8, 8),
     {{"add 1 5 2 score", ""}, {"step", "+1 1:0+5[0,4)!"}, {"step", "1:5+1!"}}},
    {"AScoredPromptIsCutToTheRowsOfLogits",
     Limits(4, 32, 32, 4, 8),
     {{"add 1 10 2 score", ""},
      {"step", "+1 1:0+4[0,4)"},
      {"step", "1:4+4[4,8)"},
      {"step", "1:8+2[8,9)!"}}},
    {"AScoreWithoutGenerationDrawsNothing",
     Limits(4, 32, 32, 8, 8),
     {{"add 1 4 0 score", ""}, {"step", "+1 1:0+4[0,3)"}, {"step", ""}}},
    {"ScoresComeBeforeTheTokensOfEveryChoice",
     Limits(4, 32, 32, 4, 8),
     {{"add 1 6 2 score", ""},
      {"add 2 6 2 share 1", ""},
      {"step", "+1 1:0+4[0,4)"},
      {"step", "1:4+2[4,5)!"},
      {"step", "+2 1:6+1! 2:0+6!"}}},
    {"RowsOfLogitsGoToDecodingFirst",
     Limits(2, 32, 32, 2, 8),
     {{"add 1 3 9", ""},
      {"step", "+1 1:0+3!"},
      {"add 2 4 0 score", ""},
      {"step", "+2 1:3+1! 2:0+1[0,1)"},
      {"step", "1:4+1! 2:1+1[1,2)"},
      {"step", "1:5+1! 2:2+2[2,3)"}}},
    {"ScoresThatWereDeliveredAreNotComputedAgainAfterPreemption",
     Limits(1, 32, 32, 4, 8),
     {{"add 1 10 2 score", ""},
      {"step", "+1 1:0+4[0,4)"},
      {"pause 1 0", ""},
      {"add 2 2 1", ""},
      {"step", "+2 -1 2:0+2!"},
      {"remove 2", ""},
      {"resume 1", ""},
      {"step", "+1 1:0+8[4,8)"},
      {"step", "1:8+2[8,9)!"}}},
};

INSTANTIATE_TEST_SUITE_P(All, SchedulerTable, testing::ValuesIn(kTables),
                         [](const auto& table) { return std::string(table.param.name); });

}  // namespace
}  // namespace nibble
