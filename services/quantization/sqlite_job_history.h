// SPDX-License-Identifier: Apache-2.0
// What happened to jobs: their events and log lines, both bounded. Under the database's mutex, the
// writing methods inside a transaction.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/quantization/clock.h"
#include "services/quantization/job_store.h"
#include "services/quantization/sqlite_database.h"

namespace nibble {

class SqliteJobHistory {
 public:
  SqliteJobHistory(SqliteDatabase& database, const Clock& clock) : db_(database), clock_(clock) {}

  // As JobStore's.
  absl::StatusOr<std::vector<JobEventRecord>> ListEvents(const std::string& id, int64_t after,
                                                         int32_t limit);
  absl::StatusOr<int64_t> LastSequence();
  absl::StatusOr<std::vector<LogRecord>> ListLogs(const std::string& id, int64_t after,
                                                  int32_t limit);

  // An event with the job's state and progress of now.
  absl::Status AddEvent(const std::string& id, JobEventKind kind,
                        AttemptEnd end = AttemptEnd::kNone, std::string_view message = "",
                        double seconds = 0);
  // Progress takes the place of what was reported before.
  absl::Status ReplaceProgress(const std::string& id);
  // Drops the oldest events beyond kMaxJobEvents.
  absl::Status TrimEvents(const std::string& id);
  // Drops the oldest lines when there are more than kMaxLogLines.
  absl::Status AddLogs(const Lease& lease, const std::vector<std::string>& lines);

 private:
  SqliteDatabase& db_;
  const Clock& clock_;
};

}  // namespace nibble
