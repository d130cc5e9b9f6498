// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/sqlite_job_rows.h"

#include <optional>
#include <utility>

#include "engine/base/cat.h"
#include "services/quantization/status_macros.h"

namespace nibble {

int64_t ReadJob(Query& row, JobRecord& job) {
  job.id = row.Text();
  job.tenant = row.Text();
  job.creator = row.Text();
  job.spec = row.Text();
  job.recipe = row.Text();
  job.scheme = row.Text();
  job.kv_format = row.Text();
  job.source = row.Text();
  job.artifact_id = row.Text();
  job.state = static_cast<JobState>(row.Int());
  job.reason = static_cast<JobReason>(row.Int());
  job.message = row.Text();
  job.pause_reason = row.Text();
  job.cancel_requested = row.Bool();
  job.attempt = row.Int();
  job.idle_attempts = row.Int32();
  job.leases_lost = row.Int();
  job.worker = row.Text();
  job.lease_expiry = row.Time();
  job.not_before = row.Time();
  job.create_time = row.Time();
  job.start_time = row.Time();
  job.attempt_time = row.Time();
  job.end_time = row.Time();
  job.attempt_fraction = row.Double();
  job.progress.phase = row.Text();
  job.progress.blocks_done = row.Int32();
  job.progress.blocks_total = row.Int32();
  job.progress.fraction = row.Double();
  job.progress.message = row.Text();
  job.source_digest = row.Text();
  job.texts_digest = row.Text();
  job.artifact_digest = row.Text();
  job.staged = row.Text();
  job.artifact_bytes = row.Int();
  job.sequence = row.Int();
  return row.Int();
}

absl::StatusOr<JobRecord> FindJob(SqliteDatabase& db, const std::string& id) {
  std::optional<JobRecord> job;
  NIBBLE_RETURN_IF_ERROR(db.Each(
      "SELECT " NIBBLE_JOB_COLUMNS " FROM jobs WHERE id = ?",
      [&](Query& row) { ReadJob(row, job.emplace()); }, id));
  if (!job.has_value()) return absl::NotFoundError(Cat("there is no jobs/", id));
  return *std::move(job);
}

std::string_view CutText(std::string_view text, size_t limit) {
  if (text.size() <= limit) return text;
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0) == 0x80) --limit;
  return text.substr(0, limit);
}

}  // namespace nibble
