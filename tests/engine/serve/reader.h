// SPDX-License-Identifier: Apache-2.0
// Collects what a stream delivers.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <memory>
#include <optional>

#include "engine/serve/engine.h"
#include "engine/serve/token_stream.h"

namespace nibble::testing {

class Reader {
 public:
  explicit Reader(int32_t capacity = TokenStream::kDefaultCapacity)
      : stream(std::make_shared<TokenStream>(capacity)) {}

  // Takes what is there; true once the end has come.
  bool Read() {
    while (auto update = stream->TryPop()) Take(*std::move(update));
    return end.has_value();
  }
  // Takes what comes next; false if nothing comes in time.
  bool ReadOnce(std::chrono::milliseconds timeout) {
    auto update = stream->Pop(timeout);
    if (update.has_value()) Take(*std::move(update));
    return update.has_value();
  }
  // Reads until the end; false if nothing comes for a minute.
  bool ReadToEnd() {
    while (!end.has_value()) {
      if (!ReadOnce(std::chrono::milliseconds(60000))) return false;
    }
    return true;
  }
  // Everything that choice has delivered so far, merged.
  const Delta& choice(int32_t index) { return choices_[index]; }

  const std::shared_ptr<TokenStream> stream;
  RequestHandle handle;
  std::optional<PromptInfo> prompt;
  std::optional<StreamEnd> end;

 private:
  void Take(StreamUpdate update) {
    EXPECT_FALSE(end.has_value()) << "something came behind the end";
    if (update.prompt) {
      EXPECT_FALSE(prompt.has_value());
      prompt = std::move(update.prompt);
    }
    for (Delta& delta : update.deltas) {
      EXPECT_TRUE(prompt.has_value() || delta.tokens.empty()) << "tokens before the prompt";
      Delta& all = choices_[delta.choice];
      EXPECT_EQ(all.finish, FinishReason::kNone) << "output of a choice that has ended";
      all.text += delta.text;
      all.tokens.insert(all.tokens.end(), delta.tokens.begin(), delta.tokens.end());
      all.logprobs.insert(all.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
      all.finish = delta.finish;
      all.stop_string = delta.stop_string;
      all.stop_token = delta.stop_token;
    }
    if (update.end) {
      for (auto& [index, all] : choices_) {
        EXPECT_NE(all.finish, FinishReason::kNone) << "choice " << index << " never ended";
      }
      end = std::move(update.end);
    }
  }

  std::map<int32_t, Delta> choices_;
};

}  // namespace nibble::testing
