// SPDX-License-Identifier: Apache-2.0
// The engine on its own thread, with clients on others.
#include <gmock/gmock.h>

#include <atomic>
#include <latch>
#include <random>
#include <thread>

#include "engine/serve/engine.h"
#include "tests/engine/serve/reader.h"
#include "tests/support/fake_runner.h"

namespace nibble {
namespace {

using nibble::testing::FakeRunner;
using nibble::testing::Reader;
using std::chrono::milliseconds;
using ::testing::HasSubstr;

GenerationRequest Greedy(int32_t prompt, int32_t max_tokens) {
  GenerationRequest request;
  for (int32_t i = 0; i < prompt; ++i) request.prompt.push_back(i % 900);
  request.sampling.temperature = 0;
  request.sampling.max_tokens = max_tokens;
  return request;
}

class Observer final : public EngineObserver {
 public:
  void OnFinished(const Finished&) override { finished.fetch_add(1); }
  std::atomic<int> finished{0};
};

class EngineThread : public ::testing::Test {
 protected:
  void Start(const EngineOptions& options = {}) {
    auto runner = std::make_unique<FakeRunner>(limits_);
    model_ = runner.get();
    if (before_collect_) model_->before_collect = before_collect_;
    auto engine = Engine::Make(std::move(runner), nullptr, options, &observer_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    engine_->Start();
  }
  std::unique_ptr<Reader> Submit(GenerationRequest request, int32_t capacity = 256) {
    auto reader = std::make_unique<Reader>(capacity);
    const auto handle = engine_->Submit(std::move(request), reader->stream);
    EXPECT_TRUE(handle.ok()) << handle.status();
    if (handle.ok()) reader->handle = *handle;
    return reader;
  }
  template <typename Predicate>
  static void Await(const Predicate& predicate) {
    for (int i = 0; i < 60000 && !predicate(); ++i) std::this_thread::sleep_for(milliseconds(1));
    EXPECT_TRUE(predicate());
  }

  RunnerLimits limits_ = FakeRunner::DefaultLimits();
  std::function<void()> before_collect_;
  Observer observer_;
  FakeRunner* model_ = nullptr;  // owned by engine_
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineThread, ServesABlockingReader) {
  Start();
  auto reader = Submit(Greedy(40, 200));
  ASSERT_TRUE(reader->ReadToEnd());
  EXPECT_EQ(reader->choice(0).tokens, model_->Continuation(Greedy(40, 0).prompt, 200));
}

TEST_F(EngineThread, ServesAReaderThatIsCalled) {
  Start();
  auto reader = std::make_unique<Reader>(8);
  std::latch done(1);
  reader->stream->OnReady([&] {
    if (!reader->end.has_value() && reader->Read()) done.count_down();
  });
  ASSERT_TRUE(engine_->Submit(Greedy(40, 200), reader->stream).ok());
  done.wait();
  reader->stream->OnReady(nullptr);
  EXPECT_EQ(reader->choice(0).tokens.size(), 200u);
}

TEST_F(EngineThread, ManyClientsOfWhichSomeCancelAndSomeAreSlow) {
  limits_.kv_blocks = 24;
  EngineOptions options;
  options.max_waiting = 1000;
  Start(options);
  constexpr int kClients = 6;
  constexpr int kRequests = 40;
  std::atomic<int> ended{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&, c] {
      std::mt19937 random(static_cast<unsigned>(c));
      for (int i = 0; i < kRequests; ++i) {
        GenerationRequest request = Greedy(1 + static_cast<int32_t>(random() % 150), 60);
        if (random() % 4 == 0) request.sampling.n = 2;
        auto reader = Submit(std::move(request), random() % 3 == 0 ? 5 : 256);
        const bool cancels = random() % 2 == 0;
        if (cancels) {
          reader->ReadOnce(milliseconds(random() % 3));
          engine_->Cancel(reader->handle);
        }
        ASSERT_TRUE(reader->ReadToEnd());
        if (!cancels) {
          EXPECT_TRUE(reader->end->status.ok()) << reader->end->status;
        }
        ended.fetch_add(1);
        engine_->Stats();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(ended.load(), kClients * kRequests);
  EXPECT_EQ(observer_.finished.load(), kClients * kRequests);
  Await([this] {
    const EngineStats stats = engine_->Stats();
    return stats.kv_blocks_used == 0 && stats.running == 0 && stats.waiting == 0;
  });
}

TEST_F(EngineThread, DrainFinishesWhatIsThereAndRefusesWhatComes) {
  std::latch go(1);
  before_collect_ = [&go] { go.wait(); };
  Start();
  auto reader = Submit(Greedy(10, 20));
  std::thread drain([this] { engine_->Drain(std::chrono::minutes(10)); });
  Await([this] { return engine_->Stats().state == EngineState::kDraining; });
  const auto refused = engine_->Submit(Greedy(3, 3), std::make_shared<TokenStream>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(refused.status().message(), HasSubstr("draining"));
  go.count_down();
  drain.join();
  ASSERT_TRUE(reader->ReadToEnd());
  EXPECT_TRUE(reader->end->status.ok());
  EXPECT_EQ(reader->choice(0).tokens.size(), 20u);
}

TEST_F(EngineThread, DrainEndsTheRestAfterItsGrace) {
  before_collect_ = [] { std::this_thread::sleep_for(milliseconds(1)); };
  Start();
  auto reader = Submit(Greedy(10, 1000), 2000);
  engine_->Drain(milliseconds(20));
  ASSERT_TRUE(reader->ReadToEnd());
  EXPECT_EQ(reader->end->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(reader->choice(0).finish, FinishReason::kShutdown);
}

TEST_F(EngineThread, StopEndsEverythingAndMayBeCalledAgain) {
  Start();
  auto reader = Submit(Greedy(10, 1000), 4);
  engine_->Stop();
  engine_->Stop();
  ASSERT_TRUE(reader->ReadToEnd());
  EXPECT_FALSE(reader->end->status.ok());
  EXPECT_EQ(engine_->Stats().state, EngineState::kStopped);
}

TEST_F(EngineThread, ReadersMayOutliveTheEngine) {
  Start();
  auto reader = Submit(Greedy(10, 1000), 4);
  EXPECT_TRUE(reader->ReadOnce(milliseconds(60000)));
  engine_.reset();
  ASSERT_TRUE(reader->ReadToEnd());
  EXPECT_TRUE(reader->end.has_value());
}

TEST_F(EngineThread, AStepThatHangsIsSeenInItsAge) {
  std::latch go(1);
  before_collect_ = [&go] { go.wait(); };
  Start();
  auto reader = Submit(Greedy(10, 2));
  Await([this] { return engine_->Stats().current_step_seconds > 0.005; });
  EXPECT_GE(engine_->Stats().heartbeat_age, 0.005);
  go.count_down();
  ASSERT_TRUE(reader->ReadToEnd());
  Await([this] { return engine_->Stats().current_step_seconds == 0; });
}

TEST_F(EngineThread, AnIdleEngineKeepsItsHeartbeat) {
  Start();
  std::this_thread::sleep_for(milliseconds(700));
  Await([this] { return engine_->Stats().heartbeat_age < 0.6; });
}

TEST_F(EngineThread, ASlowReaderIsEndedWhileNothingElseRuns) {
  EngineOptions options;
  options.slow_reader = milliseconds(50);
  Start(options);
  auto reader = Submit(Greedy(10, 100), 4);
  Await([this] { return engine_->Stats().kv_blocks_used == 0 && observer_.finished.load() == 1; });
  ASSERT_TRUE(reader->ReadToEnd());
  EXPECT_EQ(reader->end->status.code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace nibble
