// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/sqlite_job_history.h"

#include "services/quantization/sqlite_job_rows.h"
#include "services/quantization/status_macros.h"

namespace nibble {

// In the order that ListEvents reads them.
#define EVENT_COLUMNS                                                            \
  "sequence, job, time, kind, state, attempt, attempt_end, phase, blocks_done, " \
  "blocks_total, fraction, progress_message, message, seconds"

absl::StatusOr<std::vector<JobEventRecord>> SqliteJobHistory::ListEvents(const std::string& id,
                                                                         int64_t after,
                                                                         int32_t limit) {
  std::vector<JobEventRecord> events;
  const auto read = [&](Query& row) {
    JobEventRecord& event = events.emplace_back();
    event.sequence = row.Int();
    event.job = row.Text();
    event.time = row.Time();
    event.kind = static_cast<JobEventKind>(row.Int());
    event.state = static_cast<JobState>(row.Int());
    event.attempt = row.Int();
    event.end = static_cast<AttemptEnd>(row.Int());
    event.progress.phase = row.Text();
    event.progress.blocks_done = row.Int32();
    event.progress.blocks_total = row.Int32();
    event.progress.fraction = row.Double();
    event.progress.message = row.Text();
    event.message = row.Text();
    event.seconds = row.Double();
  };
  if (id.empty()) {
    NIBBLE_RETURN_IF_ERROR(db_.Each("SELECT " EVENT_COLUMNS
                                    " FROM events WHERE sequence > ? ORDER BY sequence LIMIT ?",
                                    read, after, limit));
  } else {
    NIBBLE_RETURN_IF_ERROR(
        db_.Each("SELECT " EVENT_COLUMNS
                 " FROM events WHERE job = ? AND sequence > ? ORDER BY sequence LIMIT ?",
                 read, id, after, limit));
  }
  return events;
}

absl::StatusOr<int64_t> SqliteJobHistory::LastSequence() {
  return db_.Integer("SELECT COALESCE(MAX(sequence), 0) FROM events");
}

absl::StatusOr<std::vector<LogRecord>> SqliteJobHistory::ListLogs(const std::string& id,
                                                                  int64_t after, int32_t limit) {
  std::vector<LogRecord> lines;
  NIBBLE_RETURN_IF_ERROR(db_.Each(
      "SELECT line, time, attempt, text FROM logs WHERE job = ? AND line > ? "
      "ORDER BY line LIMIT ?",
      [&](Query& row) {
        LogRecord& record = lines.emplace_back();
        record.line = row.Int();
        record.time = row.Time();
        record.attempt = row.Int();
        record.text = row.Text();
      },
      id, after, limit));
  return lines;
}

absl::Status SqliteJobHistory::AddEvent(const std::string& id, JobEventKind kind, AttemptEnd end,
                                        std::string_view message, double seconds) {
  return db_
      .Run(
          "INSERT INTO events (job, time, kind, state, attempt, attempt_end, phase, "
          "blocks_done, blocks_total, fraction, progress_message, message, seconds) "
          "SELECT id, ?, ?, state, attempt, ?, phase, blocks_done, blocks_total, fraction, "
          "progress_message, ?, ? FROM jobs WHERE id = ?",
          clock_.Now(), kind, end, CutText(message, kMaxLogLineBytes), seconds, id)
      .status();
}

absl::Status SqliteJobHistory::ReplaceProgress(const std::string& id) {
  NIBBLE_RETURN_IF_ERROR(
      db_.Run("DELETE FROM events WHERE job = ? AND kind = ?", id, JobEventKind::kProgress)
          .status());
  return AddEvent(id, JobEventKind::kProgress);
}

absl::Status SqliteJobHistory::TrimEvents(const std::string& id) {
  return db_
      .Run(
          "DELETE FROM events WHERE job = ?1 AND sequence <= (SELECT sequence FROM events "
          "WHERE job = ?1 ORDER BY sequence DESC LIMIT 1 OFFSET ?2)",
          id, int64_t{kMaxJobEvents})
      .status();
}

absl::Status SqliteJobHistory::AddLogs(const Lease& lease, const std::vector<std::string>& lines) {
  if (lines.empty()) return absl::OkStatus();
  const absl::Time now = clock_.Now();
  for (const std::string& line : lines) {
    NIBBLE_RETURN_IF_ERROR(
        db_.Run("INSERT INTO logs (job, time, attempt, text) VALUES (?, ?, ?, ?)", lease.job, now,
                lease.attempt, CutText(line, kMaxLogLineBytes))
            .status());
  }
  // Trimmed when a tenth is too much, so that most batches need not count.
  NIBBLE_RETURN_IF_ERROR(db_.Run("UPDATE jobs SET log_lines = log_lines + ? WHERE id = ?",
                                 static_cast<int64_t>(lines.size()), lease.job)
                             .status());
  NIBBLE_ASSIGN_OR_RETURN(const int64_t kept,
                          db_.Integer("SELECT log_lines FROM jobs WHERE id = ?", lease.job));
  if (kept <= kMaxLogLines) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(
      db_.Run("DELETE FROM logs WHERE job = ?1 AND line <= (SELECT line FROM logs WHERE job = ?1 "
              "ORDER BY line DESC LIMIT 1 OFFSET ?2)",
              lease.job, int64_t{kMaxLogLines - kMaxLogLines / 10})
          .status());
  return db_
      .Run("UPDATE jobs SET log_lines = (SELECT COUNT(*) FROM logs WHERE job = ?1) WHERE id = ?1",
           lease.job)
      .status();
}

}  // namespace nibble
