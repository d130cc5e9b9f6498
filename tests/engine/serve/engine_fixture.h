// SPDX-License-Identifier: Apache-2.0
// An engine on a model without arithmetic, one step at a time.
#pragma once

#include <gmock/gmock.h>

#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "engine/serve/engine.h"
#include "tests/engine/serve/reader.h"
#include "tests/support/fake_runner.h"
#include "tests/support/fake_text.h"

namespace nibble {
namespace testing {

inline std::vector<int32_t> Prompt(int32_t size, int32_t first = 10) {
  std::vector<int32_t> prompt(static_cast<size_t>(size));
  std::iota(prompt.begin(), prompt.end(), first);
  return prompt;
}

inline GenerationRequest Greedy(std::vector<int32_t> prompt, int32_t max_tokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.sampling.max_tokens = max_tokens;
  return request;
}

class CountingObserver final : public EngineObserver {
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
  CountingObserver observer_;
  FakeRunner* model_ = nullptr;  // owned by engine_
  std::unique_ptr<Engine> engine_;
};
}  // namespace testing
}  // namespace nibble
