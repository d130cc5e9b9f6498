// SPDX-License-Identifier: Apache-2.0
// What the engine refuses or holds back: slow readers, a full queue, requests out of range.
#include <gmock/gmock.h>

#include "tests/engine/serve/engine_fixture.h"

namespace nibble {
namespace {

using ::nibble::testing::EngineTest;
using ::nibble::testing::FakeRunner;
using ::nibble::testing::Greedy;
using ::nibble::testing::Prompt;
using std::chrono::milliseconds;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// ---- Slow readers

TEST_F(EngineTest, ASlowReaderPausesOnlyItsOwnSequence) {
  auto slow = Submit(Greedy(Prompt(5), 500));
  auto other = Submit(Greedy(Prompt(6), 500));
  for (int i = 0; i < 300; ++i) {
    Steps(1);
    other->Read();
  }
  EXPECT_EQ(engine_->Stats().paused, 1);
  EXPECT_EQ(engine_->Stats().pauses, 1u);
  EXPECT_THAT(other->choice(0).tokens, SizeIs(300));
  slow->Read();
  EXPECT_THAT(slow->choice(0).tokens, SizeIs(256)) << "the capacity of its stream";
  Steps(1);
  EXPECT_EQ(engine_->Stats().paused, 0);
  for (int i = 0; i < 600; ++i) {
    engine_->Step();
    slow->Read();
    other->Read();
  }
  EXPECT_EQ(slow->choice(0).tokens, model_->Continuation(Prompt(5), 500));
  EXPECT_TRUE(slow->end->status.ok());
}

TEST_F(EngineTest, APausedSequenceIsPreemptedFirstAndComesBackUnchanged) {
  RunnerLimits limits = FakeRunner::DefaultLimits();
  limits.kv_blocks = 12;
  MakeEngine(limits);
  auto slow = Submit(Greedy(Prompt(60), 200), 100);
  Steps(100);
  EXPECT_FALSE(engine_->Step()) << "its stream is full and nothing else runs";
  auto big = Submit(Greedy(Prompt(600, 7), 20));
  while (!big->Read()) engine_->Step();
  EXPECT_EQ(engine_->Stats().preemptions, 1u);
  slow->Read();
  while (!slow->Read()) engine_->Step();
  EXPECT_EQ(slow->choice(0).tokens, model_->Continuation(Prompt(60), 200));
}

TEST_F(EngineTest, AReaderThatStaysSlowIsEnded) {
  auto slow = Submit(Greedy(Prompt(5), 50), 4);
  Steps(4);
  EXPECT_FALSE(engine_->Step());
  now_ += milliseconds(29999);
  EXPECT_FALSE(engine_->Step());
  EXPECT_EQ(engine_->Stats().paused, 1);
  now_ += milliseconds(1);
  EXPECT_FALSE(engine_->Step());
  EXPECT_EQ(engine_->Stats().kv_blocks_used, 0);
  slow->Read();
  EXPECT_EQ(slow->end->status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(slow->choice(0).finish, FinishReason::kSlowReader);
  EXPECT_THAT(slow->choice(0).tokens, SizeIs(4));
}

// ---- Admission

TEST_F(EngineTest, TheQueueIsBoundedAndHintsWhenToRetry) {
  options_.max_waiting = 3;
  options_.max_choices = 2;
  RunnerLimits limits = FakeRunner::DefaultLimits();
  limits.max_sequences = 1;
  MakeEngine(limits);
  auto running = Submit(Greedy(Prompt(5), 50));
  Steps(1);
  auto first = Submit(Greedy(Prompt(5), 5));
  auto pair = Greedy(Prompt(5), 5);
  pair.sampling.n = 2;
  auto both = Submit(pair);
  const absl::Status full = Refusal(Greedy(Prompt(5), 5));
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(full.message(), HasSubstr("3 sequences with 15 tokens wait"));
  ASSERT_TRUE(RetryAfter(full).has_value());
  EXPECT_GE(RetryAfter(full)->count(), 100);
  EXPECT_EQ(engine_->Stats().waiting, 3);
  EXPECT_FALSE(RetryAfter(absl::OkStatus()).has_value());
  RunToEnd();
  EXPECT_EQ(engine_->Stats().waiting, 0);
  EXPECT_TRUE(Refusal(Greedy(Prompt(5), 5)).ok());
}

TEST_F(EngineTest, TheTokensOfTheQueueAreBounded) {
  options_.max_queued_tokens = 100;
  MakeEngine(FakeRunner::DefaultLimits());
  auto long_prompt = Submit(Greedy(Prompt(300), 5));  // Alone it may be longer.
  EXPECT_EQ(Refusal(Greedy(Prompt(5), 5)).code(), absl::StatusCode::kResourceExhausted);
}

struct BadRequest {
  const char* name;
  void (*spoil)(GenerationRequest&);
  const char* message;
};

class EngineRefuses : public EngineTest, public ::testing::WithParamInterface<BadRequest> {};

TEST_P(EngineRefuses, NamingFieldValueAndRange) {
  auto request = Greedy(Prompt(5), 5);
  GetParam().spoil(request);
  const absl::Status status = Refusal(request);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.message(), HasSubstr(GetParam().message));
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
const BadRequest kBadRequests[] = {
    {"EmptyPrompt", [](GenerationRequest& r) { r.prompt = {}; },
     "the length of the prompt is 0; allowed: 1..1024"},
    {"PromptToken", [](GenerationRequest& r) { r.prompt[2] = 1000; },
     "prompt[2] is 1000; allowed: 0..999"},
    {"Context", [](GenerationRequest& r) { r.sampling.max_tokens = 1020; },
     "prompt (5 tokens) + max_tokens (1020) is 1025; allowed: 1..1024"},
    {"MaxTokens", [](GenerationRequest& r) { r.sampling.max_tokens = -1; },
     "max_tokens is -1; allowed: 0..1024"},
    {"MinTokens", [](GenerationRequest& r) { r.sampling.min_tokens = 6; },
     "min_tokens is 6; allowed: 0..5"},
    {"N", [](GenerationRequest& r) { r.sampling.n = 17; }, "n is 17; allowed: 1..16"},
    {"Temperature", [](GenerationRequest& r) { r.sampling.temperature = kNan; },
     "temperature is nan; allowed: 0"},
    {"TopK", [](GenerationRequest& r) { r.sampling.top_k = -1; }, "top_k is -1; allowed: 0.."},
    {"TopP", [](GenerationRequest& r) { r.sampling.top_p = 0; }, "top_p is 0; allowed: above 0"},
    {"MinP", [](GenerationRequest& r) { r.sampling.min_p = 1.5f; }, "min_p is 1.5; allowed: 0..1"},
    {"Repetition", [](GenerationRequest& r) { r.sampling.repetition_penalty = 0; },
     "repetition_penalty is 0; allowed: above 0"},
    {"Presence", [](GenerationRequest& r) { r.sampling.presence_penalty = 3; },
     "presence_penalty is 3; allowed: -2..2"},
    {"Frequency", [](GenerationRequest& r) { r.sampling.frequency_penalty = -3; },
     "frequency_penalty is -3; allowed: -2..2"},
    {"Logprobs", [](GenerationRequest& r) { r.sampling.logprobs = 21; },
     "logprobs is 21; allowed: 0..20"},
    {"PromptLogprobs", [](GenerationRequest& r) { r.sampling.prompt_logprobs = -1; },
     "prompt_logprobs is -1; allowed: 0..20"},
    {"BiasToken",
     [](GenerationRequest& r) {
       r.sampling.logit_bias = {{-1, 1}};
     },
     "a token of logit_bias is -1; allowed: 0..999"},
    {"BiasValue",
     [](GenerationRequest& r) {
       r.sampling.logit_bias = {{3, kNan}};
     },
     "logit_bias of token 3 is nan"},
    {"BiasTwice",
     [](GenerationRequest& r) {
       r.sampling.logit_bias = {{3, 1}, {3, 2}};
     },
     "logit_bias names token 3 twice"},
    {"BiasCount", [](GenerationRequest& r) { r.sampling.logit_bias.resize(1025); },
     "the number of logit_bias entries is 1025; allowed: 0..1024"},
    {"StopCount", [](GenerationRequest& r) { r.sampling.stop.assign(17, "x"); },
     "the number of stop strings is 17; allowed: 0..16"},
    {"StopEmpty",
     [](GenerationRequest& r) {
       r.sampling.stop = {"a", ""};
     },
     "the length of stop[1] is 0; allowed: 1..256 bytes"},
    {"StopLong", [](GenerationRequest& r) { r.sampling.stop = {std::string(257, 'x')}; },
     "the length of stop[0] is 257"},
    {"StopTokens", [](GenerationRequest& r) { r.sampling.stop_token_ids.assign(65, 1); },
     "the number of stop_token_ids is 65; allowed: 0..64"},
    {"StopToken",
     [](GenerationRequest& r) {
       r.sampling.stop_token_ids = {1, -5};
     },
     "stop_token_ids[1] is -5; allowed: 0..999"},
};
INSTANTIATE_TEST_SUITE_P(All, EngineRefuses, ::testing::ValuesIn(kBadRequests),
                         [](const auto& bad) { return std::string(bad.param.name); });

TEST_F(EngineTest, ThePoolBoundsTheContextToo) {
  RunnerLimits limits = FakeRunner::DefaultLimits();
  limits.kv_blocks = 2;
  MakeEngine(limits);
  EXPECT_THAT(Refusal(Greedy(Prompt(100), 29)).message(), HasSubstr("is 129; allowed: 1..128"));
  auto reader = Submit(Greedy(Prompt(100), 28));
  RunToEnd();
  reader->Read();
  EXPECT_THAT(reader->choice(0).tokens, SizeIs(28));
}

TEST_F(EngineTest, StopStringsNeedText) {
  auto engine = Engine::Make(std::make_unique<FakeRunner>(), nullptr, {}, nullptr);
  ASSERT_TRUE(engine.ok());
  auto request = Greedy(Prompt(5), 5);
  request.sampling.stop = {"x"};
  EXPECT_EQ((*engine)->Validate(request).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(EngineTest, OptionsOutOfRangeAreRefused) {
  EngineOptions options;
  options.max_waiting = 0;
  const auto engine = Engine::Make(std::make_unique<FakeRunner>(), nullptr, options, nullptr);
  EXPECT_THAT(engine.status().message(), HasSubstr("max_waiting is 0; allowed: 1.."));
}

}  // namespace
}  // namespace nibble
