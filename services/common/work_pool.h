// SPDX-License-Identifier: Apache-2.0
// A few threads for work that would block a gRPC thread: tokenizing, hashing, files, the database.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace nibble {

// Thread-safe. Work runs in the order it came, on any of the threads.
class WorkPool {
 public:
  // threads >= 1; at most `queue` pieces of work wait.
  WorkPool(int threads, size_t queue);
  // Runs what waits, then joins.
  ~WorkPool();
  WorkPool(const WorkPool&) = delete;
  WorkPool& operator=(const WorkPool&) = delete;

  // False, and `work` is dropped, if the queue is full. `work` must not throw.
  [[nodiscard]] bool TryRun(std::function<void()> work);
  // The same without a limit, for work whose amount something else bounds.
  void Run(std::function<void()> work);

 private:
  void Loop();

  const size_t capacity_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace nibble
