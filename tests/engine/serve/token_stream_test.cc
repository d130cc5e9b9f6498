// SPDX-License-Identifier: Apache-2.0
#include "engine/serve/token_stream.h"

#include <gmock/gmock.h>

#include <atomic>
#include <thread>

namespace nibble {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;

bool Push(TokenStream& stream, int32_t choice, std::vector<int32_t> tokens, std::string text,
          FinishReason finish = FinishReason::kNone) {
  Delta delta;
  delta.choice = choice;
  delta.tokens = std::move(tokens);
  delta.text = std::move(text);
  delta.finish = finish;
  return stream.Push(delta);
}

TEST(TokenStream, IsEmptyAtFirst) {
  TokenStream stream;
  EXPECT_FALSE(stream.TryPop().has_value());
  EXPECT_FALSE(stream.Pop(milliseconds(1)).has_value());
}

TEST(TokenStream, UndeliveredDeltasMergeIntoOnePerChoice) {
  TokenStream stream;
  Push(stream, 1, {10}, "x");
  Push(stream, 0, {1}, "a");
  Push(stream, 1, {11}, "y");
  Push(stream, 0, {2}, "b", FinishReason::kLength);
  const auto update = stream.TryPop();
  ASSERT_TRUE(update.has_value());
  ASSERT_EQ(update->deltas.size(), 2u);
  EXPECT_EQ(update->deltas[0].text, "ab");
  EXPECT_THAT(update->deltas[0].tokens, ElementsAre(1, 2));
  EXPECT_EQ(update->deltas[0].finish, FinishReason::kLength);
  EXPECT_EQ(update->deltas[1].text, "xy");
  EXPECT_EQ(update->deltas[1].finish, FinishReason::kNone);
  EXPECT_FALSE(stream.TryPop().has_value());
}

TEST(TokenStream, PromptDeltasAndEndCanComeTogether) {
  TokenStream stream;
  stream.PushPrompt({7, 42, {}});
  Push(stream, 0, {1}, "a");
  StreamEnd end;
  end.usage.completion_tokens = 1;
  stream.Close(end);
  const auto update = stream.TryPop();
  ASSERT_TRUE(update && update->prompt && update->end);
  EXPECT_EQ(update->prompt->seed, 42u);
  EXPECT_EQ(update->end->usage.completion_tokens, 1);
  EXPECT_FALSE(stream.TryPop().has_value());
}

TEST(TokenStream, APushLeavesTheDeltaEmpty) {
  TokenStream stream;
  Delta delta;
  delta.tokens = {1};
  delta.text = "a";
  delta.finish = FinishReason::kStop;
  delta.stop_string = "a";
  delta.stop_token = 1;
  delta.logprobs.emplace_back();
  stream.Push(delta);
  EXPECT_TRUE(delta.tokens.empty() && delta.text.empty() && delta.logprobs.empty());
  EXPECT_EQ(delta.finish, FinishReason::kNone);
  EXPECT_TRUE(delta.stop_string.empty() && delta.stop_token == -1);
}

TEST(TokenStream, IsFullAtItsCapacityForEachChoice) {
  TokenStream stream(3);
  int room = 0;
  stream.OnRoom([&room] { ++room; });
  EXPECT_FALSE(Push(stream, 0, {1, 2}, ""));
  EXPECT_FALSE(Push(stream, 1, {1}, ""));
  EXPECT_TRUE(Push(stream, 0, {3}, ""));
  EXPECT_TRUE(stream.Full(0));
  EXPECT_FALSE(stream.Full(1));
  EXPECT_EQ(room, 0);
  stream.TryPop();
  EXPECT_EQ(room, 1) << "the writer is told when the reader has made room";
  EXPECT_FALSE(stream.Full(0));
  Push(stream, 0, {4}, "");
  stream.TryPop();
  EXPECT_EQ(room, 1) << "and only then";
}

TEST(TokenStream, CallsTheReaderWhenItTurnsNonEmpty) {
  TokenStream stream;
  int calls = 0;
  stream.OnReady([&calls] { ++calls; });
  EXPECT_EQ(calls, 0);
  Push(stream, 0, {1}, "");
  Push(stream, 0, {2}, "");
  EXPECT_EQ(calls, 1);
  stream.TryPop();
  Push(stream, 0, {3}, "");
  EXPECT_EQ(calls, 2);
}

TEST(TokenStream, CallsTheReaderOnceMoreWhenItIsClosed) {
  TokenStream stream;
  int calls = 0;
  stream.OnReady([&calls] { ++calls; });
  Push(stream, 0, {1}, "");
  EXPECT_FALSE(stream.closed());
  stream.Close(StreamEnd());
  EXPECT_TRUE(stream.closed());
  EXPECT_EQ(calls, 2) << "though it was not empty";
  stream.TryPop();
  EXPECT_TRUE(stream.closed());
}

TEST(TokenStream, CallsAReaderThatComesLateAtOnce) {
  TokenStream stream;
  Push(stream, 0, {1}, "");
  int calls = 0;
  stream.OnReady([&calls] { ++calls; });
  EXPECT_EQ(calls, 1);
}

TEST(TokenStream, TheReaderMayPopInsideItsCallback) {
  TokenStream stream(1);
  std::vector<int32_t> got;
  stream.OnRoom([] {});
  stream.OnReady([&] {
    while (auto update = stream.TryPop()) {
      for (const Delta& delta : update->deltas) got.push_back(delta.tokens.at(0));
    }
  });
  for (int32_t i = 0; i < 5; ++i) Push(stream, 0, {i}, "");
  EXPECT_THAT(got, ElementsAre(0, 1, 2, 3, 4));
}

TEST(TokenStream, NoCallbackRunsOnceItWasTakenBack) {
  for (int round = 0; round < 200; ++round) {
    TokenStream stream;
    auto alive = std::make_unique<std::atomic<bool>>(true);
    stream.OnReady([raw = alive.get()] { EXPECT_TRUE(raw->load()); });
    std::thread writer([&stream] {
      for (int32_t i = 0; i < 10; ++i) {
        Push(stream, 0, {i}, "");
        stream.TryPop();
      }
    });
    stream.OnReady(nullptr);
    alive->store(false);
    writer.join();
  }
}

TEST(TokenStream, PopWaitsForAWriter) {
  TokenStream stream;
  std::thread writer([&stream] { Push(stream, 0, {5}, "five"); });
  const auto update = stream.Pop(milliseconds(60000));
  writer.join();
  ASSERT_TRUE(update.has_value());
  EXPECT_EQ(update->deltas.at(0).text, "five");
}

TEST(TokenStream, AReaderOnAnotherThreadGetsEverythingInOrder) {
  constexpr int32_t kTokens = 20000;
  TokenStream stream;
  std::thread writer([&stream] {
    for (int32_t i = 0; i < kTokens; ++i) Push(stream, 0, {i}, "");
    stream.Close(StreamEnd());
  });
  std::vector<int32_t> got;
  for (bool ended = false; !ended;) {
    const auto update = stream.Pop(milliseconds(60000));
    ASSERT_TRUE(update.has_value());
    for (const Delta& delta : update->deltas) {
      got.insert(got.end(), delta.tokens.begin(), delta.tokens.end());
    }
    ended = update->end.has_value();
  }
  writer.join();
  ASSERT_EQ(got.size(), static_cast<size_t>(kTokens));
  for (int32_t i = 0; i < kTokens; ++i) ASSERT_EQ(got[static_cast<size_t>(i)], i);
}

}  // namespace
}  // namespace nibble
