// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/store_job_host.h"

#include <utility>

namespace nibble {
namespace {

constexpr std::chrono::milliseconds kFlushInterval{250};
constexpr size_t kMaxGatheredLines = 1000;  // the newest are kept while the store is unreachable

}  // namespace

StoreJobHost::StoreJobHost(JobStore& store, Lease lease, LeaseKeeper& keeper,
                           const std::atomic<bool>& drain,
                           std::vector<PipelineCheckpoint> checkpoints)
    : store_(store),
      lease_(std::move(lease)),
      keeper_(keeper),
      drain_(drain),
      checkpoints_(std::move(checkpoints)) {}

absl::Status StoreJobHost::Commit(const PipelineCheckpoint& checkpoint) {
  if (absl::Status status = Flush(); !status.ok()) return status;
  return store_.CommitCheckpoint(lease_, checkpoint);
}

void StoreJobHost::Report(const PipelineProgress& progress) {
  const std::lock_guard lock(mutex_);
  progress_ = progress;
  FlushIfDueLocked();
}

void StoreJobHost::Log(std::string_view line) {
  const std::lock_guard lock(mutex_);
  if (lines_.size() >= kMaxGatheredLines) lines_.erase(lines_.begin());
  lines_.emplace_back(line);
  FlushIfDueLocked();
}

absl::Status StoreJobHost::KeepGoing() {
  if (drain_) return absl::AbortedError("the worker is asked to stop");
  return keeper_.Standing();
}

absl::Status StoreJobHost::Flush() {
  const std::lock_guard lock(mutex_);
  return FlushLocked();
}

absl::Status StoreJobHost::FlushLocked() {
  flushed_ = std::chrono::steady_clock::now();
  if (!progress_.has_value() && lines_.empty()) return absl::OkStatus();
  if (absl::Status status = store_.RecordProgress(lease_, progress_, lines_); !status.ok()) {
    return status;
  }
  progress_.reset();
  lines_.clear();
  return absl::OkStatus();
}

void StoreJobHost::FlushIfDueLocked() {
  if (std::chrono::steady_clock::now() - flushed_ < kFlushInterval) return;
  // A store that cannot be written now is asked again with the next report; a lost lease shows in
  // KeepGoing.
  FlushLocked().IgnoreError();
}

}  // namespace nibble
