// SPDX-License-Identifier: Apache-2.0
// A persistent pool that runs one parallel loop at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace nibble {

// CPUs in this process's affinity mask, at least 1.
int AvailableCpus();

// `threads` includes the caller of Run: a pool of one runs everything on the caller. The pool has
// fewer if the system does not grant them. Run may be called from several threads; loops are then
// served one after the other. Loops must not nest. Workers spin for about 20 us after a loop and
// then sleep.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end, thread) on disjoint ranges of at most `grain` items that cover
  // [0, items), and returns when all calls have returned. `thread` is in [0, threads()) and no two
  // simultaneous calls share it. Ranges are claimed as threads become free, so which thread runs a
  // range varies: results must not depend on it.
  template <typename Body>
  void Run(int64_t items, int64_t grain, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    RunErased(
        items, grain,
        [](void* context, int64_t begin, int64_t end, int thread) {
          (*static_cast<Plain*>(context))(begin, end, thread);
        },
        const_cast<std::remove_const_t<Plain>*>(&body));
  }

 private:
  using Call = void (*)(void* context, int64_t begin, int64_t end, int thread);
  void RunErased(int64_t items, int64_t grain, Call call, void* context);
  void Work(int thread);
  void Claim(int thread);

  std::vector<std::thread> workers_;

  std::mutex run_mutex_;  // held by the thread whose loop is running

  // The current loop: written while the pool is closed, read by workers that have entered.
  int64_t items_ = 0;
  int64_t grain_ = 1;
  Call call_ = nullptr;
  void* context_ = nullptr;

  // Workers inside the current loop in the low bits, kOpen while more may enter, and a count of
  // loops above. A worker that wakes too late finds the loop closed and is not waited for.
  static constexpr uint64_t kOpen = 1u << 16;
  static constexpr uint64_t kNextLoop = 1u << 17;
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
};

}  // namespace nibble
