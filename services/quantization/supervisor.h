// SPDX-License-Identifier: Apache-2.0
// Keeps a number of worker processes running beside the service.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/quantization/job_store.h"

namespace nibble {

struct SupervisorOptions {
  int workers = 1;
  // Program and arguments of a worker; "--name NAME" and "--lifeline-fd N" are appended. The
  // program must end when it reads EOF from descriptor N, see lifeline.h.
  std::vector<std::string> command;
  std::chrono::milliseconds first_backoff{100};  // before a restart; doubled each time
  std::chrono::milliseconds longest_backoff{10'000};
  std::chrono::milliseconds healthy{30'000};     // a worker that lived so long starts over at first
  std::chrono::milliseconds stop_grace{10'000};  // after EOF, before SIGKILL
};

// Starts the workers with posix_spawn, restarts those that end, and puts the jobs of dead ones back
// at once. Workers end when this object does, and also when this process is killed: the other end
// of their pipe closes with it. Thread-safe.
class Supervisor {
 public:
  Supervisor(SupervisorOptions options, JobStore& jobs);
  ~Supervisor();  // Stop()
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // Lets workers hand back what they run, waits for them, kills the ones that stay.
  void Stop();

  int64_t restarts() const { return restarts_; }
  // Process ids of the workers that run now.
  std::vector<pid_t> pids() const;

 private:
  struct Slot {
    std::string name;
    pid_t pid = -1;
    int lifeline = -1;  // our end of the pipe
    std::chrono::steady_clock::time_point started;
    std::chrono::steady_clock::time_point start_at;
    std::chrono::milliseconds backoff{0};
    int generation = 0;
  };
  void Loop();
  absl::Status Start(Slot& slot);
  void Reap(Slot& slot, bool wait);
  void CloseAndWait();

  const SupervisorOptions options_;
  JobStore& jobs_;
  std::atomic<int64_t> restarts_ = 0;
  mutable std::mutex mutex_;  // guards slots_ and stop_
  std::condition_variable stop_changed_;
  bool stop_ = false;
  std::vector<Slot> slots_;
  std::thread thread_;
};

}  // namespace nibble
