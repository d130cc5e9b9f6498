// SPDX-License-Identifier: Apache-2.0
#include "engine/serve/token_stream.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "kernels/check.h"

namespace nibble {
namespace {

// Moves what is in `from` behind what is in `to`.
template <typename T>
void AppendMoved(std::vector<T>& to, std::vector<T>& from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
  from.clear();
}

}  // namespace

TokenStream::TokenStream(int32_t capacity) : capacity_(capacity) { NIBBLE_CHECK(capacity >= 1); }

bool TokenStream::Empty() const {
  return !pending_.prompt && pending_.deltas.empty() && !pending_.end;
}

// ---- Reader

std::optional<StreamUpdate> TokenStream::TryPop() { return Pop(std::chrono::milliseconds(0)); }

std::optional<StreamUpdate> TokenStream::Pop(std::chrono::milliseconds timeout) {
  std::optional<StreamUpdate> update;
  std::function<void()> room;
  {
    std::unique_lock lock(mutex_);
    if (timeout.count() > 0) {
      filled_.wait_for(lock, timeout, [this] { return !Empty(); });
    }
    if (Empty()) return std::nullopt;
    update.emplace(std::exchange(pending_, StreamUpdate()));
    if (std::exchange(was_full_, false)) room = room_;
  }
  if (room) room();
  return update;
}

void TokenStream::OnReady(std::function<void()> ready) {
  std::lock_guard ready_lock(ready_mutex_);
  ready_ = std::move(ready);
  bool call = false;
  {
    std::lock_guard lock(mutex_);
    call = !Empty();
  }
  if (call && ready_) ready_();
}

// ---- Writer

void TokenStream::OnRoom(std::function<void()> room) {
  std::lock_guard lock(mutex_);
  room_ = std::move(room);
}

bool TokenStream::closed() const {
  std::lock_guard lock(mutex_);
  return closed_;
}

void TokenStream::Notify() {
  filled_.notify_one();
  std::lock_guard ready_lock(ready_mutex_);
  if (ready_) ready_();
}

void TokenStream::PushPrompt(PromptInfo prompt) {
  bool was_empty = false;
  {
    std::lock_guard lock(mutex_);
    NIBBLE_CHECK(!closed_);
    was_empty = Empty();
    pending_.prompt = std::move(prompt);
  }
  if (was_empty) Notify();
}

bool TokenStream::Push(Delta& delta) {
  bool was_empty = false;
  bool full = false;
  {
    std::lock_guard lock(mutex_);
    NIBBLE_CHECK(!closed_);
    was_empty = Empty();
    auto at = std::lower_bound(pending_.deltas.begin(), pending_.deltas.end(), delta.choice,
                               [](const Delta& d, int32_t choice) { return d.choice < choice; });
    if (at == pending_.deltas.end() || at->choice != delta.choice) {
      at = pending_.deltas.emplace(at);
      at->choice = delta.choice;
    }
    at->text += delta.text;
    at->tokens.insert(at->tokens.end(), delta.tokens.begin(), delta.tokens.end());
    AppendMoved(at->logprobs, delta.logprobs);
    if (delta.finish != FinishReason::kNone) {
      at->finish = delta.finish;
      at->stop_string = delta.stop_string;
      at->stop_token = delta.stop_token;
    }
    full = static_cast<int32_t>(at->tokens.size()) >= capacity_;
    was_full_ |= full;
  }
  delta.text.clear();
  delta.tokens.clear();
  delta.finish = FinishReason::kNone;
  delta.stop_string.clear();
  delta.stop_token = -1;
  if (was_empty) Notify();
  return full;
}

void TokenStream::Close(StreamEnd end) {
  {
    std::lock_guard lock(mutex_);
    NIBBLE_CHECK(!closed_);
    closed_ = true;
    pending_.end = std::move(end);
    room_ = nullptr;
  }
  Notify();
}

bool TokenStream::Full(int32_t choice) const {
  std::lock_guard lock(mutex_);
  for (const Delta& delta : pending_.deltas) {
    if (delta.choice == choice) return static_cast<int32_t>(delta.tokens.size()) >= capacity_;
  }
  return false;
}

}  // namespace nibble
