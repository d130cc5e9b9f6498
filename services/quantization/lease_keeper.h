// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/status/status.h"
#include "services/quantization/job_store.h"

namespace nibble {

// All on the worker's monotonic clock; the store's lease (LeaseOptions::lease) must be longer than
// `give_up`, so that a worker stops before somebody else begins.
struct LeaseTimes {
  std::chrono::milliseconds heartbeat{5000};
  std::chrono::milliseconds give_up{20000};      // without a renewal: the lease counts as lost
  std::chrono::milliseconds last_resort{10000};  // after that: `on_last_resort` is called
  std::chrono::milliseconds poll{500};           // how often Standing() may ask the store
};

// Renews a lease on a thread of its own for as long as it lives. Thread-safe.
class LeaseKeeper {
 public:
  // `on_last_resort` is called on that thread if the work has not ended by itself long after the
  // lease was lost; it should end the process.
  LeaseKeeper(JobStore& store, Lease lease, LeaseTimes times, std::function<void()> on_last_resort);
  ~LeaseKeeper();
  LeaseKeeper(const LeaseKeeper&) = delete;
  LeaseKeeper& operator=(const LeaseKeeper&) = delete;

  // Ok to go on; Cancelled if the job is to be; Aborted if the lease is lost, and ever after.
  absl::Status Standing();

 private:
  using Time = std::chrono::steady_clock::time_point;
  void Loop();
  // Takes in an answer of the store to a question asked at `asked`.
  void Note(const absl::StatusOr<bool>& cancel, Time asked, bool renewed);
  void Lose(Time now);
  absl::Status StandingLocked() const;

  JobStore& store_;
  const Lease lease_;
  const LeaseTimes times_;
  const std::function<void()> on_last_resort_;
  std::mutex mutex_;
  std::condition_variable stop_changed_;
  bool stop_ = false;
  bool lost_ = false;
  Time lost_at_;  // when this process noticed
  bool cancel_ = false;
  Time renewed_;
  Time asked_;
  std::thread thread_;
};

}  // namespace nibble
