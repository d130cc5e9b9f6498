// SPDX-License-Identifier: Apache-2.0
// How attempts and jobs end: every way out of RUNNING and PUBLISHING. Inside a transaction of the
// database.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/quantization/clock.h"
#include "services/quantization/job_store.h"
#include "services/quantization/sqlite_database.h"
#include "services/quantization/sqlite_job_history.h"

namespace nibble {

class SqliteJobEndings {
 public:
  SqliteJobEndings(SqliteDatabase& database, const Clock& clock, SqliteJobHistory& history,
                   std::function<bool(std::string_view worker)> worker_lives)
      : db_(database), clock_(clock), history_(history), worker_lives_(std::move(worker_lives)) {}

  // As JobStore::ReclaimExpired.
  absl::StatusOr<int> RequeueExpired();
  // Ends the attempt that `job` is at, as JobStore::EndAttempt.
  absl::Status EndAttempt(const JobRecord& job, AttemptEnd end, const std::string& message,
                          absl::Duration delay);
  // Ends the job; `state` is terminal.
  absl::Status EndJob(const std::string& id, JobState state, JobReason reason,
                      const std::string& message);

 private:
  SqliteDatabase& db_;
  const Clock& clock_;
  SqliteJobHistory& history_;
  const std::function<bool(std::string_view worker)> worker_lives_;
};

}  // namespace nibble
