// SPDX-License-Identifier: Apache-2.0
// What the service looks after while nobody asks: leases that ran out, publishes left half done,
// left-over files, watchers and metrics.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "engine/artifact/file_system.h"
#include "services/common/metrics.h"
#include "services/quantization/clock.h"
#include "services/quantization/data_layout.h"
#include "services/quantization/job_store.h"
#include "services/quantization/resource_store.h"
#include "services/quantization/watch_hub.h"

namespace nibble {

struct HousekeeperOptions {
  std::chrono::milliseconds look{100};      // at the store's events
  std::chrono::milliseconds recover{1000};  // leases and publishes
  std::chrono::milliseconds gauges{5000};   // counts of jobs, disk
  std::chrono::milliseconds sweep{3600'000};
};

// Works on a thread of its own while it lives.
class Housekeeper {
 public:
  // All must outlive it. `identity`: the worker identity under which it completes publishes.
  // `restarts`: worker restarts so far.
  Housekeeper(HousekeeperOptions options, JobStore& jobs, ResourceStore& resources, FileSystem& fs,
              DataLayout layout, const Clock& clock, std::string identity, WatchHub& hub,
              Metrics& metrics, std::function<int64_t()> restarts);
  ~Housekeeper();
  Housekeeper(const Housekeeper&) = delete;
  Housekeeper& operator=(const Housekeeper&) = delete;

 private:
  void Loop();
  void Follow();  // new events: watchers and counters
  void Count(const JobEventRecord& event);
  void SetGauges();
  void Recover();

  const HousekeeperOptions options_;
  JobStore& jobs_;
  ResourceStore& resources_;
  FileSystem& fs_;
  const DataLayout layout_;
  const Clock& clock_;
  const std::string identity_;
  WatchHub& hub_;
  Metrics& metrics_;
  const std::function<int64_t()> restarts_;
  int64_t sequence_ = 0;
  int64_t restarts_seen_ = 0;
  std::mutex mutex_;
  std::condition_variable stop_changed_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace nibble
