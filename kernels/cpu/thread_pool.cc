// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/thread_pool.h"

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <system_error>

#include "kernels/check.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kSpin = std::chrono::microseconds(20);

// Polls `done` for about kSpin; false when it stayed false.
template <typename Predicate>
bool SpinUntil(Predicate done) {
  if (done()) return true;
  const Clock::time_point deadline = Clock::now() + kSpin;
  for (;;) {
    for (int i = 0; i < 32; ++i) {
      _mm_pause();
      if (done()) return true;
    }
    if (Clock::now() >= deadline) return false;
  }
}

}  // namespace

int AvailableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int threads) {
  NIBBLE_CHECK(threads >= 1);
  workers_.reserve(static_cast<size_t>(threads - 1));
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { Work(i); });
  } catch (const std::system_error&) {
    // The system grants no more threads: results do not depend on how many there are.
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(sleep_mutex_);
    stop_.store(true);
    state_.fetch_add(kNextLoop);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Claim(int thread) {
  for (;;) {
    const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= items_) return;
    call_(context_, begin, std::min(items_, begin + grain_), thread);
  }
}

void ThreadPool::RunErased(int64_t items, int64_t grain, Call call, void* context) {
  if (items <= 0) return;
  std::lock_guard<std::mutex> run(run_mutex_);
  items_ = items;
  grain_ = std::max<int64_t>(grain, 1);
  call_ = call;
  context_ = context;
  next_.store(0, std::memory_order_relaxed);
  if (workers_.empty() || items <= grain_) {
    Claim(0);
    return;
  }
  state_.fetch_add(kNextLoop | kOpen);  // Publishes the loop; ordered against sleepers_ in Work.
  if (sleepers_.load() > 0) {
    { std::lock_guard<std::mutex> lock(sleep_mutex_); }
    wake_.notify_all();
  }
  Claim(0);
  state_.fetch_and(~kOpen);
  const auto finished = [this] {
    return (state_.load(std::memory_order_acquire) & (kOpen - 1)) == 0;
  };
  // A worker that lost its CPU needs ours: past the spin, give it away.
  while (!SpinUntil(finished)) sched_yield();
}

void ThreadPool::Work(int thread) {
  uint64_t seen = 0;  // count of loops
  for (;;) {
    const auto advanced = [&] { return state_.load() / kNextLoop != seen; };
    if (!SpinUntil(advanced)) {
      sleepers_.fetch_add(1);
      {
        std::unique_lock<std::mutex> lock(sleep_mutex_);
        wake_.wait(lock, advanced);
      }
      sleepers_.fetch_sub(1);
    }
    if (stop_.load()) return;
    uint64_t state = state_.load();
    bool entered = false;
    while (!entered && (state & kOpen) != 0)
      entered = state_.compare_exchange_weak(state, state + 1);
    seen = state / kNextLoop;
    if (!entered) continue;
    Claim(thread);
    state_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace nibble
