// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/sqlite_job_endings.h"

#include <vector>

#include "engine/base/cat.h"
#include "services/quantization/sqlite_job_rows.h"
#include "services/quantization/status_macros.h"

namespace nibble {

absl::StatusOr<int> SqliteJobEndings::RequeueExpired() {
  const absl::Time now = clock_.Now();
  std::vector<JobRecord> jobs;
  NIBBLE_RETURN_IF_ERROR(db_.Each(
      "SELECT " NIBBLE_JOB_COLUMNS " FROM jobs WHERE state = ? AND lease_expiry <= ?",
      [&](Query& row) { ReadJob(row, jobs.emplace_back()); }, JobState::kRunning, now));
  for (const JobRecord& job : jobs) {
    const bool lives = worker_lives_(job.worker);
    NIBBLE_RETURN_IF_ERROR(
        EndAttempt(job, lives ? AttemptEnd::kLeaseLost : AttemptEnd::kCrashed,
                   lives ? "the worker did not renew its lease in time" : "the worker process died",
                   absl::ZeroDuration()));
  }
  return static_cast<int>(jobs.size());
}

absl::Status SqliteJobEndings::EndAttempt(const JobRecord& job, AttemptEnd end,
                                          const std::string& message, absl::Duration delay) {
  const bool counts = end == AttemptEnd::kCrashed || end == AttemptEnd::kFailed;
  const absl::Time now = clock_.Now();
  NIBBLE_RETURN_IF_ERROR(db_.Run("UPDATE jobs SET idle_attempts = MAX(0, idle_attempts - ?), "
                                 "leases_lost = leases_lost + ?, message = ? WHERE id = ?",
                                 int64_t{counts ? 0 : 1},
                                 int64_t{end == AttemptEnd::kLeaseLost ? 1 : 0},
                                 CutText(message, kMaxLogLineBytes), job.id)
                             .status());
  NIBBLE_RETURN_IF_ERROR(history_.AddEvent(job.id, JobEventKind::kAttemptEnded, end, message));
  if (job.cancel_requested) return EndJob(job.id, JobState::kCancelled, JobReason::kNone, "");
  if (counts && job.idle_attempts >= kMaxIdleAttempts) {
    return EndJob(job.id, JobState::kFailed, JobReason::kAttemptsExhausted,
                  Cat(job.idle_attempts,
                      " consecutive attempts finished no new block; the last error: ", message));
  }
  const std::string_view pause =
      end == AttemptEnd::kPaused ? std::string_view(message) : std::string_view();
  NIBBLE_RETURN_IF_ERROR(
      db_.Run("UPDATE jobs SET state = ?, worker = '', lease_expiry = 0, not_before = ?, "
              "queued_time = ?, staged = '', artifact_digest = '', pause_reason = ? WHERE id = ?",
              JobState::kQueued, now + delay, now, pause, job.id)
          .status());
  NIBBLE_RETURN_IF_ERROR(
      history_.AddEvent(job.id, JobEventKind::kStateChanged, AttemptEnd::kNone, pause));
  return history_.TrimEvents(job.id);
}

absl::Status SqliteJobEndings::EndJob(const std::string& id, JobState state, JobReason reason,
                                      const std::string& message) {
  NIBBLE_RETURN_IF_ERROR(
      db_.Run("UPDATE jobs SET state = ?, reason = ?, message = ?, worker = '', "
              "lease_expiry = 0, pause_reason = '', staged = '', end_time = ? WHERE id = ?",
              state, reason, CutText(message, kMaxLogLineBytes), clock_.Now(), id)
          .status());
  if (state == JobState::kSucceeded) {
    NIBBLE_RETURN_IF_ERROR(db_.Run("UPDATE jobs SET fraction = 1 WHERE id = ?", id).status());
  }
  // Checkpoints of an ended job are nobody's: the sweeper may take the files.
  NIBBLE_RETURN_IF_ERROR(db_.Run("DELETE FROM checkpoints WHERE job = ?", id).status());
  return history_.AddEvent(id, JobEventKind::kStateChanged, AttemptEnd::kNone, message);
}

}  // namespace nibble
