// SPDX-License-Identifier: Apache-2.0
// The engine's steps, one at a time, on a model without arithmetic.
#include "engine/serve/engine.h"

#include <gmock/gmock.h>

#include <numeric>

#include "tests/engine/serve/reader.h"
#include "tests/support/fake_runner.h"
#include "tests/support/fake_text.h"

namespace nibble {
namespace {

using nibble::testing::FakeRunner;
using nibble::testing::FakeText;
using nibble::testing::Reader;
using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

std::vector<int32_t> Prompt(int32_t size, int32_t first = 10) {
  std::vector<int32_t> prompt(static_cast<size_t>(size));
  std::iota(prompt.begin(), prompt.end(), first);
  return prompt;
}

GenerationRequest Greedy(std::vector<int32_t> prompt, int32_t max_tokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.sampling.max_tokens = max_tokens;
  return request;
}

class Observer final : public EngineObserver {
 public:
  void OnFirstToken(const Timings&) override { ++first_tokens; }
  void OnInterToken(double) override { ++inter_tokens; }
  void OnFinished(const Finished& request) override { finished.push_back(request); }
  void OnStep(double, int32_t tokens) override { step_tokens.push_back(tokens); }
  void OnCancelToFree(double seconds) override { cancel_to_free.push_back(seconds); }

  int first_tokens = 0;
  int inter_tokens = 0;
  std::vector<Finished> finished;
  std::vector<int32_t> step_tokens;
  std::vector<double> cancel_to_free;
};

// An engine whose clock moves only when the test says so.
class EngineTest : public ::testing::Test {
 protected:
  void SetUp() override { MakeEngine(FakeRunner::DefaultLimits()); }

  void MakeEngine(const RunnerLimits& limits) {
    engine_.reset();
    auto runner = std::make_unique<FakeRunner>(limits);
    model_ = runner.get();
    options_.clock = [this] { return now_; };
    auto engine = Engine::Make(std::move(runner), text_.Factory(), options_, &observer_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  std::unique_ptr<Reader> Submit(GenerationRequest request, int32_t capacity = 256) {
    auto reader = std::make_unique<Reader>(capacity);
    const auto handle = engine_->Submit(std::move(request), reader->stream);
    EXPECT_TRUE(handle.ok()) << handle.status();
    if (handle.ok()) reader->handle = *handle;
    return reader;
  }
  absl::Status Refusal(GenerationRequest request) {
    return engine_->Submit(std::move(request), std::make_shared<TokenStream>()).status();
  }
  void RunToEnd() {
    for (int i = 0; engine_->Step(); ++i) ASSERT_LT(i, 10000);
  }
  void Steps(int count) {
    for (int i = 0; i < count; ++i) ASSERT_TRUE(engine_->Step());
  }
  // A token that stands for `piece`, drawn after `after` tokens of context.
  void Says(size_t prompt, std::vector<std::string> pieces) {
    std::vector<int32_t> tokens;
    for (const std::string& piece : pieces) {
      tokens.push_back(piece == "<eos>" ? FakeRunner::kEos : text_.Token(piece));
    }
    model_->next = [prompt, tokens](std::span<const int32_t> context) {
      return tokens[(context.size() - prompt) % tokens.size()];
    };
  }

  SteadyTime now_{std::chrono::hours(1)};
  EngineOptions options_;
  FakeText text_;
  Observer observer_;
  FakeRunner* model_ = nullptr;  // owned by engine_
  std::unique_ptr<Engine> engine_;
};

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

// ---- Cancelling, deadlines, slow readers

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
