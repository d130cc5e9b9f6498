// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/sqlite_job_intake.h"

#include <utility>

#include "engine/base/cat.h"
#include "services/quantization/sqlite_job_rows.h"
#include "services/quantization/status_macros.h"

namespace nibble {

absl::StatusOr<std::optional<JobRecord>> SqliteJobIntake::FindRequest(const std::string& tenant,
                                                                      const std::string& creator,
                                                                      const std::string& request_id,
                                                                      const std::string& digest) {
  std::string id, earlier_digest;
  if (!request_id.empty()) {
    NIBBLE_RETURN_IF_ERROR(db_.Each(
        "SELECT id, request_digest FROM jobs "
        "WHERE tenant = ? AND creator = ? AND request_id = ?",
        [&](Query& row) {
          id = row.Text();
          earlier_digest = row.Text();
        },
        tenant, creator, request_id));
  }
  if (id.empty()) return std::optional<JobRecord>();
  if (earlier_digest != digest) {
    return absl::AlreadyExistsError(
        Cat("request_id '", request_id, "' was used for another request, which made jobs/", id));
  }
  NIBBLE_ASSIGN_OR_RETURN(JobRecord job, FindJob(db_, id));
  return std::make_optional(std::move(job));
}

template <typename RequestId>
absl::Status SqliteJobIntake::InsertRow(const NewJob& job, const RequestId& request_id,
                                        absl::Time now) {
  return db_
      .Run(
          "INSERT INTO jobs (id, tenant, creator, request_id, request_digest, spec, recipe, "
          "scheme, kv_format, source, artifact_id, state, queued_time, create_time) "
          "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
          job.id, job.tenant, job.creator, request_id, job.request_digest, Blob{job.spec},
          job.recipe, job.scheme, job.kv_format, job.source, job.artifact_id, JobState::kQueued,
          now, now)
      .status();
}

absl::Status SqliteJobIntake::Insert(const NewJob& job) {
  NIBBLE_ASSIGN_OR_RETURN(const int64_t unfinished,
                          db_.Integer("SELECT COUNT(*) FROM jobs WHERE tenant = ? AND state <= ?",
                                      job.tenant, JobState::kPublishing));
  if (unfinished >= job.max_queued) {
    return absl::ResourceExhaustedError(Cat("tenant '", job.tenant, "' has ", unfinished,
                                            " unfinished jobs; at most ", job.max_queued,
                                            " are allowed"));
  }
  NIBBLE_ASSIGN_OR_RETURN(
      const int64_t taken,
      db_.Integer("SELECT (SELECT COUNT(*) FROM artifacts WHERE id = ?1) + "
                  "(SELECT COUNT(*) FROM jobs WHERE artifact_id = ?1 AND state <= ?2)",
                  job.artifact_id, JobState::kPublishing));
  if (taken != 0) {
    return absl::AlreadyExistsError(Cat("artifact_id: artifacts/", job.artifact_id,
                                        " exists, or an unfinished job will make it"));
  }
  const absl::Time now = clock_.Now();
  if (job.request_id.empty()) {
    NIBBLE_RETURN_IF_ERROR(InsertRow(job, nullptr, now));
  } else {
    NIBBLE_RETURN_IF_ERROR(InsertRow(job, job.request_id, now));
  }
  for (const std::string& resource : job.resources) {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t found,
                            db_.Integer("SELECT COUNT(*) FROM resources WHERE name = ?", resource));
    if (found == 0) return absl::NotFoundError(Cat("there is no ", resource));
    NIBBLE_RETURN_IF_ERROR(
        db_.Run("INSERT OR IGNORE INTO job_resources (job, resource) VALUES (?, ?)", job.id,
                resource)
            .status());
  }
  return history_.AddEvent(job.id, JobEventKind::kStateChanged);
}

}  // namespace nibble
