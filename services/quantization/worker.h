// SPDX-License-Identifier: Apache-2.0
// A worker: leases jobs one after the other, runs the pipeline on each, publishes what it made. It
// may die at any instruction; the next attempt goes on at the last committed block.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/artifact/file_system.h"
#include "engine/quant/pipeline.h"
#include "services/quantization/data_layout.h"
#include "services/quantization/job_store.h"
#include "services/quantization/lease_keeper.h"
#include "services/quantization/resource_store.h"

namespace nibble {

// RunPipeline with its backend bound.
using Pipeline = std::function<absl::StatusOr<PipelineResult>(
    const PipelineSpec& spec, FileSystem& fs, const std::string& work_dir,
    const std::string& checkpoint_dir, JobHost& host)>;

struct WorkerOptions {
  DataLayout layout;
  std::string model_root;  // "" = jobs cannot name sources by path
  std::string identity;    // WorkerIdentity()
  LeaseTimes times;
  std::chrono::milliseconds idle_poll{250};           // between looks into an empty queue
  std::chrono::milliseconds disk_full_delay{60'000};  // before a paused job is tried again
  std::function<void()> on_last_resort;               // see LeaseKeeper
};

// Thread-compatible: one thread runs it; `drain` may be set from any thread or a signal handler.
class Worker {
 public:
  Worker(WorkerOptions options, JobStore& jobs, ResourceStore& resources, FileSystem& fs,
         Pipeline pipeline, const std::atomic<bool>& drain);

  // Leases and runs jobs until `drain` is set. A job that is running then is handed back, to be
  // resumed by another worker.
  void Run();
  // Leases and runs one job to the end of its attempt; false if there was none. Errors are the
  // store's: what goes wrong with the job is written into it.
  absl::StatusOr<bool> RunOne();

 private:
  struct Inputs;
  absl::Status RunAttempt(const JobRecord& job);
  absl::StatusOr<PipelineResult> RunJob(const JobRecord& job, JobHost& host);
  absl::Status Publish(const JobRecord& job, const PipelineResult& result, LeaseKeeper& keeper);
  absl::Status EndFailed(const JobRecord& job, const absl::Status& error, LeaseKeeper& keeper);
  // Ends an attempt whose error may pass: paused by a full disk, or failed, which counts.
  absl::Status EndForNow(const JobRecord& job, const absl::Status& error, LeaseKeeper& keeper);
  void KeepReport(const JobRecord& job, const std::string& artifact_dir);

  const WorkerOptions options_;
  JobStore& jobs_;
  ResourceStore& resources_;
  FileSystem& fs_;
  const Pipeline pipeline_;
  const std::atomic<bool>& drain_;
};

}  // namespace nibble
