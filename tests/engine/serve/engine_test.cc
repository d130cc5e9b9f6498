// SPDX-License-Identifier: Apache-2.0
// The engine's steps, one at a time, on a model without arithmetic.
#include "engine/serve/engine.h"

#include <gmock/gmock.h>

#include "tests/engine/serve/engine_fixture.h"

namespace nibble {
namespace {

using ::nibble::testing::EngineTest;
using ::nibble::testing::FakeRunner;
using ::nibble::testing::Greedy;
using ::nibble::testing::Prompt;
using ::nibble::testing::Reader;
using std::chrono::milliseconds;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// ---- Output

TEST_F(EngineTest, StreamsPromptInfoTokensAndEnd) {
  auto reader = Submit(Greedy(Prompt(5), 3));
  Steps(1);
  reader->Read();
  ASSERT_TRUE(reader->prompt.has_value());
  EXPECT_EQ(reader->prompt->prompt_tokens, 5);
  EXPECT_THAT(reader->choice(0).tokens, SizeIs(1));
  EXPECT_FALSE(reader->end.has_value());
  RunToEnd();
  reader->Read();
  EXPECT_EQ(reader->choice(0).tokens, model_->Continuation(Prompt(5), 3));
  EXPECT_EQ(reader->choice(0).finish, FinishReason::kLength);
  ASSERT_TRUE(reader->end.has_value());
  EXPECT_TRUE(reader->end->status.ok());
  EXPECT_EQ(reader->end->usage.prompt_tokens, 5);
  EXPECT_EQ(reader->end->usage.completion_tokens, 3);
  EXPECT_FALSE(engine_->Step()) << "nothing is left to do";
}

TEST_F(EngineTest, StopsAtAnEndOfSequenceTokenWhoseTextIsNotShown) {
  Says(3, {"a", "b", "<eos>"});
  auto reader = Submit(Greedy(Prompt(3), 10));
  RunToEnd();
  reader->Read();
  EXPECT_EQ(reader->choice(0).text, "ab");
  EXPECT_THAT(reader->choice(0).tokens, SizeIs(3));
  EXPECT_EQ(reader->choice(0).finish, FinishReason::kStop);
  EXPECT_EQ(reader->choice(0).stop_token, FakeRunner::kEos);
  EXPECT_TRUE(reader->end->status.ok());
}

TEST_F(EngineTest, IgnoreEosGoesOn) {
  Says(3, {"a", "<eos>"});
  auto request = Greedy(Prompt(3), 5);
  request.sampling.ignore_eos = true;
  auto reader = Submit(request);
  RunToEnd();
  reader->Read();
  EXPECT_EQ(reader->choice(0).text, "aaa");
  EXPECT_EQ(reader->choice(0).finish, FinishReason::kLength);
}

TEST_F(EngineTest, StopsAtAStopTokenAndAStopString) {
  Says(3, {"one ", "two", "STO", "P more"});
  auto request = Greedy(Prompt(3), 20);
  request.sampling.stop_token_ids = {text_.Token("two")};
  auto by_token = Submit(request);
  request.sampling.stop_token_ids = {};
  request.sampling.stop = {"STOP"};
  auto by_string = Submit(request);
  request.sampling.include_stop_str_in_output = true;
  auto included = Submit(request);
  RunToEnd();
  by_token->Read();
  by_string->Read();
  included->Read();
  EXPECT_EQ(by_token->choice(0).text, "one ");
  EXPECT_EQ(by_token->choice(0).stop_token, text_.Token("two"));
  EXPECT_EQ(by_string->choice(0).text, "one two");
  EXPECT_EQ(by_string->choice(0).stop_string, "STOP");
  EXPECT_THAT(by_string->choice(0).tokens, SizeIs(4)) << "it stops within the step";
  EXPECT_EQ(included->choice(0).text, "one twoSTOP");
}

TEST_F(EngineTest, BeforeMinTokensNothingStops) {
  Says(3, {"X", "<eos>"});
  auto request = Greedy(Prompt(3), 8);
  request.sampling.stop = {"X"};
  request.sampling.min_tokens = 3;
  auto reader = Submit(request);
  RunToEnd();
  reader->Read();
  EXPECT_THAT(reader->choice(0).tokens, SizeIs(3));
  EXPECT_EQ(reader->choice(0).tokens[0], text_.Token("X"));
  EXPECT_NE(reader->choice(0).tokens[1], FakeRunner::kEos) << "banned";
  EXPECT_EQ(reader->choice(0).stop_string, "X");
}

TEST_F(EngineTest, ASeedIsDrawnAndToldAndGivesTheSameTokensAgain) {
  auto request = Greedy(Prompt(4), 6);
  request.sampling.temperature = 1;
  auto first = Submit(request);
  RunToEnd();
  first->Read();
  request.sampling.seed = first->prompt->seed;
  auto second = Submit(request);
  RunToEnd();
  second->Read();
  EXPECT_EQ(second->prompt->seed, first->prompt->seed);
  EXPECT_EQ(second->choice(0).tokens, first->choice(0).tokens);
}

TEST_F(EngineTest, ChoicesDifferAndShareTheirPrompt) {
  auto request = Greedy(Prompt(150), 4);
  request.sampling.temperature = 1;
  request.sampling.n = 3;
  request.sampling.seed = 5;
  auto reader = Submit(request);
  RunToEnd();
  reader->Read();
  EXPECT_NE(reader->choice(0).tokens, reader->choice(1).tokens);
  EXPECT_NE(reader->choice(1).tokens, reader->choice(2).tokens);
  EXPECT_EQ(reader->end->usage.prompt_tokens, 150);
  EXPECT_EQ(reader->end->usage.completion_tokens, 12);
  // 150 rows once, the 22 behind the last full block twice more, then three rows a choice.
  EXPECT_EQ(engine_->Stats().computed_tokens, 150u + 2 * 22 + 3 * 3);
  EXPECT_EQ(engine_->Stats().kv_blocks_used, 0);
  // The first choice of n is the only choice of one.
  request.sampling.n = 1;
  auto alone = Submit(request);
  RunToEnd();
  alone->Read();
  EXPECT_EQ(alone->choice(0).tokens, reader->choice(0).tokens);
}

TEST_F(EngineTest, PromptLogprobsComeBeforeTheFirstToken) {
  auto request = Greedy(Prompt(40), 2);
  request.sampling.prompt_logprobs = 2;
  request.sampling.logprobs = 1;
  auto reader = Submit(request);
  Steps(1);
  reader->Read();
  EXPECT_FALSE(reader->prompt.has_value()) << "16 rows of logits a step: not all are there yet";
  RunToEnd();
  reader->Read();
  ASSERT_TRUE(reader->prompt.has_value());
  ASSERT_THAT(reader->prompt->prompt_logprobs, SizeIs(39));
  const std::vector<int32_t> prompt = Prompt(40);
  for (size_t i = 0; i < 39; ++i) {
    const TokenLogprob& entry = reader->prompt->prompt_logprobs[i];
    EXPECT_EQ(entry.token, prompt[i + 1]);
    EXPECT_EQ(entry.logprob, FakeRunner::LogprobOf(std::span(prompt).first(i + 1), prompt[i + 1]));
    EXPECT_THAT(entry.top, SizeIs(2));
  }
  ASSERT_THAT(reader->choice(0).logprobs, SizeIs(2));
  EXPECT_EQ(reader->choice(0).logprobs[0].token, reader->choice(0).tokens[0]);
  EXPECT_THAT(reader->choice(0).logprobs[0].top, SizeIs(1));
}

TEST_F(EngineTest, AScoreGeneratesNothing) {
  auto request = Greedy(Prompt(7), 0);
  request.sampling.prompt_logprobs = 0;
  auto reader = Submit(request);
  RunToEnd();
  reader->Read();
  EXPECT_THAT(reader->prompt->prompt_logprobs, SizeIs(6));
  EXPECT_THAT(reader->choice(0).tokens, IsEmpty());
  EXPECT_TRUE(reader->end->status.ok());
}

TEST_F(EngineTest, ARequestWithoutFiniteLogitsFailsAlone) {
  auto other = Submit(Greedy(Prompt(3), 2));
  Steps(1);
  auto broken = Submit(Greedy(Prompt(4), 5));
  Steps(1);
  model_->not_finite = true;
  other->Read();
  Steps(1);
  RunToEnd();
  broken->Read();
  EXPECT_EQ(broken->end->status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(broken->choice(0).finish, FinishReason::kError);
  other->Read();
  EXPECT_TRUE(other->end->status.ok());
  EXPECT_TRUE(engine_->health().ok());
}

// ---- What else is in the batch does not matter

TEST_F(EngineTest, OutputIsTheSameAloneMixedPreemptedAndChunked) {
  const auto run = [this](const RunnerLimits& limits, int32_t chunk, bool mixed) {
    options_.prefill_chunk = chunk;
    MakeEngine(limits);
    std::vector<std::vector<int32_t>> outputs;
    std::vector<std::unique_ptr<Reader>> readers;
    for (int32_t i = 0; i < 8; ++i) {
      auto request = Greedy(Prompt(20 + 17 * i, 10 * i), 90);
      request.sampling.temperature = 1;
      request.sampling.seed = static_cast<uint64_t>(i);
      readers.push_back(Submit(request));
      if (!mixed) RunToEnd();
    }
    RunToEnd();
    for (auto& reader : readers) {
      reader->Read();
      outputs.push_back(reader->choice(0).tokens);
    }
    return outputs;
  };
  RunnerLimits limits = FakeRunner::DefaultLimits();
  const auto alone = run(limits, 0, false);
  EXPECT_EQ(run(limits, 0, true), alone);
  EXPECT_EQ(run(limits, 16, true), alone);
  limits.kv_blocks = 8;
  EXPECT_EQ(run(limits, 0, true), alone);
  EXPECT_GT(engine_->Stats().preemptions, 0u);
}

// ---- Cancelling, deadlines

TEST_F(EngineTest, CancelFreesItsBlocksWithinOneStep) {
  auto reader = Submit(Greedy(Prompt(100), 50));
  auto other = Submit(Greedy(Prompt(5), 50));
  Steps(5);
  EXPECT_EQ(engine_->Stats().kv_blocks_used, 3);
  engine_->Cancel(reader->handle);
  Steps(1);
  EXPECT_EQ(engine_->Stats().kv_blocks_used, 1);
  reader->Read();
  EXPECT_EQ(reader->end->status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(reader->choice(0).finish, FinishReason::kCancelled);
  EXPECT_THAT(observer_.cancel_to_free, SizeIs(1));
}

TEST_F(EngineTest, CancelDuringAStepDropsItsToken) {
  auto request = Greedy(Prompt(5), 50);
  request.sampling.min_tokens = 40;  // the step under way reads the list of banned tokens
  auto reader = Submit(request);
  auto other = Submit(Greedy(Prompt(6), 50));
  Steps(2);
  model_->after_submit = [&] { engine_->Cancel(reader->handle); };
  Steps(1);
  reader->Read();
  other->Read();
  ASSERT_TRUE(reader->end.has_value()) << "its reader need not wait for the step";
  EXPECT_THAT(reader->choice(0).tokens, SizeIs(2));
  EXPECT_EQ(other->choice(0).tokens, model_->Continuation(Prompt(6), 3));
  EXPECT_EQ(engine_->Stats().kv_blocks_used, 1);
  EXPECT_THAT(observer_.cancel_to_free, SizeIs(1));
}

TEST_F(EngineTest, CancelOfAWaitingOrUnknownRequest) {
  auto reader = Submit(Greedy(Prompt(5), 50));
  engine_->Cancel(reader->handle);
  engine_->Cancel(RequestHandle{12345});
  EXPECT_FALSE(engine_->Step());
  reader->Read();
  EXPECT_EQ(reader->end->status.code(), absl::StatusCode::kCancelled);
  engine_->Cancel(reader->handle);
  EXPECT_FALSE(engine_->Step());
}

TEST_F(EngineTest, CancelEndsEveryChoice) {
  auto request = Greedy(Prompt(100), 50);
  request.sampling.n = 4;
  auto reader = Submit(request);
  Steps(5);
  engine_->Cancel(reader->handle);
  engine_->Step();
  reader->Read();
  for (int32_t i = 0; i < 4; ++i) EXPECT_EQ(reader->choice(i).finish, FinishReason::kCancelled);
  EXPECT_EQ(engine_->Stats().kv_blocks_used, 0);
  EXPECT_THAT(observer_.finished, SizeIs(1));
}

TEST_F(EngineTest, ADeadlineEndsARequestAndKeepsWhatItHad) {
  auto request = Greedy(Prompt(5), 50);
  request.deadline = now_ + milliseconds(100);
  auto reader = Submit(request);
  Steps(3);
  now_ += milliseconds(100);
  EXPECT_FALSE(engine_->Step());
  reader->Read();
  EXPECT_EQ(reader->end->status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(reader->choice(0).tokens, SizeIs(3));
  EXPECT_EQ(engine_->Stats().kv_blocks_used, 0);
}

TEST_F(EngineTest, ADeadlineThatCannotBeMetIsRefused) {
  auto request = Greedy(Prompt(5), 50);
  request.deadline = now_;
  EXPECT_EQ(Refusal(request).code(), absl::StatusCode::kDeadlineExceeded);
  // 64 rows in 64 ms: a thousand rows a second.
  model_->before_collect = [this] { now_ += milliseconds(64); };
  auto reader = Submit(Greedy(Prompt(64), 1));
  RunToEnd();
  request = Greedy(Prompt(500), 5);
  request.deadline = now_ + milliseconds(400);
  EXPECT_THAT(Refusal(request).message(), HasSubstr("deadline: 400 ms from now; at least 500 ms"));
  request.deadline = now_ + milliseconds(600);
  EXPECT_TRUE(Refusal(request).ok());
}

// ---- Failure, statistics

TEST_F(EngineTest, AFailedDeviceEndsEverythingAsUnavailable) {
  auto running = Submit(Greedy(Prompt(5), 50));
  Steps(2);
  auto waiting = Submit(Greedy(Prompt(6), 50));
  model_->failure = absl::InternalError("device lost");
  std::unique_ptr<Reader> late;
  model_->before_collect = [&] { late = Submit(Greedy(Prompt(7), 5)); };
  EXPECT_FALSE(engine_->Step());
  model_->before_collect = nullptr;
  for (Reader* reader : {running.get(), waiting.get(), late.get()}) {
    reader->Read();
    ASSERT_TRUE(reader->end.has_value());
    EXPECT_EQ(reader->end->status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(reader->end->status.message(), HasSubstr("device lost"));
    EXPECT_EQ(reader->choice(0).finish, FinishReason::kShutdown);
  }
  EXPECT_EQ(engine_->Stats().state, EngineState::kFailed);
  EXPECT_EQ(engine_->Stats().kv_blocks_used, 0);
  EXPECT_EQ(engine_->health().message(), "device lost");
  EXPECT_EQ(Refusal(Greedy(Prompt(5), 5)).code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(engine_->Step());
}

TEST_F(EngineTest, StatsCountWhatHappened) {
  model_->before_collect = [this] { now_ += milliseconds(10); };
  auto a = Submit(Greedy(Prompt(30), 3));
  auto b = Submit(Greedy(Prompt(50), 2));
  EXPECT_EQ(engine_->Stats().waiting, 2);
  EXPECT_EQ(engine_->Stats().queued_tokens, 80);
  Steps(1);
  EngineStats stats = engine_->Stats();
  EXPECT_EQ(stats.running, 2);
  EXPECT_EQ(stats.kv_blocks_used, 2);
  EXPECT_EQ(stats.kv_blocks_total, 256);
  EXPECT_DOUBLE_EQ(stats.last_step_seconds, 0.010);
  RunToEnd();
  now_ += milliseconds(500);
  stats = engine_->Stats();
  EXPECT_EQ(stats.running, 0);
  EXPECT_EQ(stats.prompt_tokens, 80u);
  EXPECT_EQ(stats.generated_tokens, 5u);
  EXPECT_EQ(stats.computed_tokens, 80u + 2 + 1);
  EXPECT_EQ(stats.steps, 3u);
  EXPECT_DOUBLE_EQ(stats.last_step_age, 0.5);
  EXPECT_EQ(stats.current_step_seconds, 0);
}

TEST_F(EngineTest, ObserversSeeEveryRequestOnceWithItsTimes) {
  model_->before_collect = [this] { now_ += milliseconds(10); };
  auto request = Greedy(Prompt(64), 3);
  request.sampling.n = 2;
  auto reader = Submit(request);
  now_ += milliseconds(5);
  RunToEnd();
  ASSERT_THAT(observer_.finished, SizeIs(1));
  const EngineObserver::Finished& finished = observer_.finished[0];
  EXPECT_EQ(finished.reason, FinishReason::kLength);
  EXPECT_EQ(finished.usage.completion_tokens, 6);
  EXPECT_EQ(finished.longest, 3);
  EXPECT_DOUBLE_EQ(finished.timings.queue, 0.005);
  EXPECT_DOUBLE_EQ(finished.timings.time_to_first_token, 0.015);
  EXPECT_DOUBLE_EQ(finished.timings.prefill, 0.010);
  EXPECT_GT(finished.timings.decode, 0.019);
  EXPECT_EQ(observer_.first_tokens, 1);
  EXPECT_EQ(observer_.inter_tokens, 4);
  EXPECT_EQ(observer_.step_tokens[0], 64);
}

TEST_F(EngineTest, StopEndsWhatIsLeft) {
  auto reader = Submit(Greedy(Prompt(5), 50));
  Steps(2);
  auto queued = Submit(Greedy(Prompt(5), 50));
  engine_->Stop();
  for (Reader* one : {reader.get(), queued.get()}) {
    one->Read();
    EXPECT_EQ(one->end->status.code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(engine_->Stats().kv_blocks_used, 0);
  EXPECT_EQ(Refusal(Greedy(Prompt(5), 5)).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace nibble
