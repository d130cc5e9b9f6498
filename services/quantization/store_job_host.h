// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/quant/pipeline.h"
#include "services/quantization/job_store.h"
#include "services/quantization/lease_keeper.h"

namespace nibble {

// What the pipeline sees of the job store. Progress and log lines are gathered and written at most
// every quarter of a second, and before each checkpoint. Thread-safe.
class StoreJobHost : public JobHost {
 public:
  // `drain` asks to stop within a block. Everything must outlive the host.
  StoreJobHost(JobStore& store, Lease lease, LeaseKeeper& keeper, const std::atomic<bool>& drain,
               std::vector<PipelineCheckpoint> checkpoints);

  std::vector<PipelineCheckpoint> Checkpoints() override { return checkpoints_; }
  absl::Status Commit(const PipelineCheckpoint& checkpoint) override;
  void Report(const PipelineProgress& progress) override;
  void Log(std::string_view line) override;
  absl::Status KeepGoing() override;

  // Writes what was gathered. An error is the lease's or the store's; what could not be written
  // stays gathered.
  absl::Status Flush();

 private:
  absl::Status FlushLocked();
  void FlushIfDueLocked();

  JobStore& store_;
  const Lease lease_;
  LeaseKeeper& keeper_;
  const std::atomic<bool>& drain_;
  const std::vector<PipelineCheckpoint> checkpoints_;
  std::mutex mutex_;
  std::optional<PipelineProgress> progress_;
  std::vector<std::string> lines_;
  std::chrono::steady_clock::time_point flushed_;
};

}  // namespace nibble
