// SPDX-License-Identifier: Apache-2.0
// The hand-over from the engine to whoever reads one request's output.
//
// The engine never waits for a reader: what has not been taken is merged, one delta per choice.
// Past `capacity` undelivered tokens a choice is `full`: the engine pauses its sequence until the
// reader has taken what is there.
//
//   auto stream = std::make_shared<TokenStream>();
//   stream->OnReady([reactor] { reactor->Wake(); });
//   engine.Submit(request, stream);
//   ... in Wake: while (auto update = stream->TryPop()) { ...; if (update->end) done; }
//
// All methods may be called from any thread; one reader and one writer at a time.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/serve/request.h"

namespace nibble {

// New output of one choice since the last delta.
struct Delta {
  int32_t choice = 0;
  std::string text;  // whole UTF-8 characters; may lag behind the tokens
  std::vector<int32_t> tokens;
  std::vector<TokenLogprob> logprobs;         // one per token if asked for
  FinishReason finish = FinishReason::kNone;  // set in the choice's last delta
  std::string stop_string;                    // kStop: the stop string that was met, or ""
  int32_t stop_token = -1;                    // kStop: the token that ended the choice, or -1
};

// The last thing a reader gets.
struct StreamEnd {
  // OK if every choice ended with kStop or kLength. Otherwise Cancelled, DeadlineExceeded,
  // ResourceExhausted (slow reader), Internal (the request failed) or Unavailable (the engine
  // failed or stopped).
  absl::Status status;
  Usage usage;
  Timings timings;
};

// Everything undelivered, in the order prompt, deltas, end. At least one of them is there.
struct StreamUpdate {
  std::optional<PromptInfo> prompt;  // in the first update that has a delta or before it
  std::vector<Delta> deltas;         // at most one per choice, ascending
  std::optional<StreamEnd> end;
};

class TokenStream {
 public:
  static constexpr int32_t kDefaultCapacity = 256;
  // capacity: undelivered tokens of one choice at which it is full, >= 1.
  explicit TokenStream(int32_t capacity = kDefaultCapacity);
  TokenStream(const TokenStream&) = delete;
  TokenStream& operator=(const TokenStream&) = delete;

  // ---- Reader

  // Takes everything undelivered; nullopt if there is nothing. After an update with `end` there is
  // never anything more.
  std::optional<StreamUpdate> TryPop();
  // The same, waiting up to `timeout`.
  std::optional<StreamUpdate> Pop(std::chrono::milliseconds timeout);
  // `ready` is called when the stream turns from empty to non-empty and when it is closed, on the
  // writer's thread or, if there is something already, on this one; it must not block and must not
  // call OnReady, and may find that everything was taken meanwhile. After OnReady(nullptr)
  // returned, the earlier callback is not running and will not be called.
  void OnReady(std::function<void()> ready);
  // Whether the end is there, taken or not: nothing will be added.
  bool closed() const;

  // ---- Writer (the engine)

  // `room` is called when a reader empties a stream in which a choice was full.
  void OnRoom(std::function<void()> room);
  void PushPrompt(PromptInfo prompt);
  // Merges `delta` into what is undelivered; returns whether its choice is now full. `delta` is
  // left empty, with its capacity where possible.
  bool Push(Delta& delta);
  void Close(StreamEnd end);
  // Whether `choice` has at least `capacity` undelivered tokens.
  bool Full(int32_t choice) const;

 private:
  bool Empty() const;
  void Notify();

  const int32_t capacity_;
  mutable std::mutex mutex_;
  std::condition_variable filled_;
  StreamUpdate pending_;
  bool closed_ = false;
  bool was_full_ = false;
  std::function<void()> room_;

  std::mutex ready_mutex_;  // held while ready_ runs; never taken while mutex_ is held
  std::function<void()> ready_;
};

}  // namespace nibble
