// SPDX-License-Identifier: Apache-2.0
// On a device that works by itself the engine submits a step before it knows what the last one
// drew. What every request gets is what it gets without that.
#include <random>

#include "tests/engine/serve/engine_fixture.h"

namespace nibble {
namespace {

using nibble::testing::EngineTest;
using nibble::testing::FakeRunner;
using nibble::testing::Greedy;
using nibble::testing::Prompt;
using nibble::testing::Reader;
using ::testing::SizeIs;

class EngineAheadTest : public EngineTest {
 protected:
  void SetUp() override { MakeEngine(Limits(true, 256)); }
  static RunnerLimits Limits(bool ahead, int32_t kv_blocks) {
    RunnerLimits limits = FakeRunner::DefaultLimits();
    limits.ahead = ahead;
    limits.kv_blocks = kv_blocks;
    return limits;
  }
};

TEST_F(EngineAheadTest, AStepIsSubmittedBeforeTheLastIsCollected) {
  auto reader = Submit(Greedy(Prompt(5), 4));
  std::vector<int64_t> submitted;
  model_->before_collect = [&] { submitted.push_back(model_->steps()); };
  RunToEnd();
  reader->Read();
  EXPECT_EQ(reader->choice(0).tokens, model_->Continuation(Prompt(5), 4));
  EXPECT_EQ(submitted, (std::vector<int64_t>{2, 3, 4, 4}));
  EXPECT_EQ(model_->rows_ahead(), 3);
  EXPECT_EQ(engine_->Stats().kv_blocks_used, 0);
}

TEST_F(EngineAheadTest, AChoiceThatEndsCostsOneRowThatIsDropped) {
  Says(5, {"a", "b", "<eos>"});
  auto reader = Submit(Greedy(Prompt(5), 50));
  RunToEnd();
  reader->Read();
  EXPECT_EQ(reader->choice(0).text, "ab");
  EXPECT_EQ(reader->choice(0).finish, FinishReason::kStop);
  EXPECT_EQ(engine_->Stats().computed_tokens, 5u + 3);
  EXPECT_EQ(engine_->Stats().generated_tokens, 3u);
  EXPECT_EQ(engine_->Stats().kv_blocks_used, 0);
}

TEST_F(EngineAheadTest, PenaltiesAreToldWhereTheTokenUnderWayStands) {
  auto penalized = Greedy(Prompt(5), 6);
  penalized.sampling.repetition_penalty = 1.2f;
  auto reader = Submit(penalized);
  RunToEnd();
  EXPECT_EQ(model_->rows_ahead(), 5);
  reader->Read();
  EXPECT_THAT(reader->choice(0).tokens, SizeIs(6));
}

TEST_F(EngineAheadTest, ScoresWaitForTheStepBefore) {
  auto scored = Greedy(Prompt(9), 6);
  scored.sampling.prompt_logprobs = 1;
  auto reader = Submit(scored);
  RunToEnd();
  EXPECT_EQ(model_->rows_ahead(), 4) << "once the prompt is scored nothing waits";
  reader->Read();
  EXPECT_THAT(reader->choice(0).tokens, SizeIs(6));
}

TEST_F(EngineAheadTest, ASlowReaderStillGetsWhatWasUnderWay) {
  auto reader = Submit(Greedy(Prompt(5), 50), /*capacity=*/4);
  for (int i = 0; i < 20; ++i) engine_->Step();
  EXPECT_EQ(engine_->Stats().paused, 1);
  EXPECT_EQ(engine_->Stats().pauses, 1u);
  EXPECT_EQ(engine_->Stats().generated_tokens, 5u);
  reader->Read();
  EXPECT_THAT(reader->choice(0).tokens, SizeIs(5));
  while (!reader->end) {
    engine_->Step();
    reader->Read();
  }
  EXPECT_EQ(reader->choice(0).tokens, model_->Continuation(Prompt(5), 50));
}

TEST_F(EngineAheadTest, AFailedDeviceEndsEverything) {
  auto reader = Submit(Greedy(Prompt(5), 50));
  Steps(3);
  model_->failure = absl::InternalError("device lost");
  EXPECT_FALSE(engine_->Step());
  EXPECT_FALSE(engine_->Step());
  reader->Read();
  EXPECT_EQ(reader->end->status.code(), absl::StatusCode::kUnavailable);
}

// Requests of all kinds, some of them cancelled at a random time, in a pool that makes sequences
// give up their blocks.
struct Outcome {
  std::vector<std::vector<int32_t>> tokens;
  uint64_t preemptions = 0;
  int64_t rows_ahead = 0;
};

class RandomTraffic : public EngineAheadTest, public ::testing::WithParamInterface<int> {
 protected:
  Outcome Serve(bool ahead, bool cancels) {
    MakeEngine(Limits(ahead, 14));
    // One token in two hundred ends a text.
    model_->next = [](std::span<const int32_t> context) {
      uint64_t hash = 14695981039346656037u;
      for (const int32_t token : context)
        hash = (hash ^ static_cast<uint64_t>(token)) * 1099511628211u;
      hash ^= hash >> 31;
      return hash % 200 == 0 ? FakeRunner::kEos : static_cast<int32_t>(3 + hash % 900);
    };
    std::mt19937 random(static_cast<uint32_t>(GetParam()));
    std::vector<std::unique_ptr<Reader>> readers;
    std::vector<int32_t> choices;  // of each request
    for (int step = 0; step < 4000; ++step) {
      if (readers.size() < 40 && random() % 3 == 0) {
        GenerationRequest request = Greedy(Prompt(1 + static_cast<int32_t>(random() % 150)), 0);
        SamplingParams& sampling = request.sampling;
        sampling.max_tokens = 1 + static_cast<int32_t>(random() % 250);
        sampling.min_tokens = static_cast<int32_t>(random() % 2);
        sampling.n = 1 + static_cast<int32_t>(random() % 2);
        sampling.ignore_eos = random() % 2 == 0;
        if (random() % 8 == 0) sampling.presence_penalty = 0.5f;
        if (random() % 8 == 0) sampling.prompt_logprobs = 0;
        choices.push_back(sampling.n);
        readers.push_back(Submit(request));
      } else if (cancels && !readers.empty() && random() % 20 == 0) {
        engine_->Cancel(readers[random() % readers.size()]->handle);
      }
      engine_->Step();
      for (const auto& reader : readers) reader->Read();
    }
    RunToEnd();
    Outcome outcome;
    for (size_t r = 0; r < readers.size(); ++r) {
      EXPECT_TRUE(readers[r]->Read());
      for (int32_t i = 0; i < choices[r]; ++i) {
        outcome.tokens.push_back(readers[r]->choice(i).tokens);
      }
    }
    EXPECT_THAT(readers, SizeIs(40));
    outcome.preemptions = engine_->Stats().preemptions;
    outcome.rows_ahead = model_->rows_ahead();
    EXPECT_EQ(engine_->Stats().kv_blocks_used, 0);
    return outcome;
  }
};

TEST_P(RandomTraffic, GetsTheSameTokensAsWithoutRunningAhead) {
  const Outcome plain = Serve(false, false), ahead = Serve(true, false);
  EXPECT_EQ(plain.tokens, ahead.tokens);
  EXPECT_EQ(plain.rows_ahead, 0);
  EXPECT_GT(ahead.rows_ahead, 100);
  EXPECT_GT(ahead.preemptions, 0u);
}

TEST_P(RandomTraffic, IsCancelledAnywhereWithoutATrace) { Serve(true, true); }

INSTANTIATE_TEST_SUITE_P(Seeds, RandomTraffic, ::testing::Range(1, 5));

}  // namespace
}  // namespace nibble
