// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/sqlite_job_store.h"

#include <algorithm>
#include <utility>

#include "engine/base/cat.h"
#include "services/quantization/sqlite_artifacts.h"
#include "services/quantization/sqlite_job_endings.h"
#include "services/quantization/sqlite_job_history.h"
#include "services/quantization/sqlite_job_intake.h"
#include "services/quantization/sqlite_job_rows.h"
#include "services/quantization/status_macros.h"

namespace nibble {
namespace {

class SqliteJobStore : public JobStore {
 public:
  SqliteJobStore(SqliteDatabase& database, const Clock& clock, LeaseOptions options)
      : db_(database),
        clock_(clock),
        options_(std::move(options)),
        history_(database, clock),
        endings_(database, clock, history_, options_.worker_lives),
        intake_(database, clock, history_),
        artifacts_(database, clock) {}

  // ---- callers ----

  absl::StatusOr<JobRecord> CreateJob(const NewJob& job) override {
    std::string id = job.id;
    NIBBLE_RETURN_IF_ERROR(db_.Write([&]() -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(
          const std::optional<JobRecord> earlier,
          intake_.FindRequest(job.tenant, job.creator, job.request_id, job.request_digest));
      if (earlier.has_value()) {
        id = earlier->id;
        return absl::OkStatus();
      }
      return intake_.Insert(job);
    }));
    return GetJob(id);
  }

  absl::StatusOr<std::optional<JobRecord>> FindRequest(const std::string& tenant,
                                                       const std::string& creator,
                                                       const std::string& request_id,
                                                       const std::string& digest) override {
    const std::lock_guard lock(db_.mutex());
    return intake_.FindRequest(tenant, creator, request_id, digest);
  }

  absl::StatusOr<JobRecord> GetJob(const std::string& id) override {
    const std::lock_guard lock(db_.mutex());
    return FindJob(db_, id);
  }

  absl::StatusOr<JobPage> ListJobs(const std::string& tenant, const std::vector<JobState>& states,
                                   int32_t limit, int64_t before) override {
    int64_t mask = states.empty() ? ~int64_t{0} : 0;
    for (const JobState state : states) mask |= int64_t{1} << static_cast<int>(state);
    JobPage page;
    int64_t number = 0;
    const std::lock_guard lock(db_.mutex());
    NIBBLE_RETURN_IF_ERROR(db_.Each(
        "SELECT " NIBBLE_JOB_COLUMNS
        " FROM jobs WHERE (?1 = '' OR tenant = ?1) AND ((1 << state) & ?2) != 0"
        " AND (?3 = 0 OR number < ?3) ORDER BY number DESC LIMIT ?4",
        [&](Query& row) { number = ReadJob(row, page.jobs.emplace_back()); }, tenant, mask, before,
        limit));
    if (static_cast<int32_t>(page.jobs.size()) == limit) page.next = number;
    return page;
  }

  absl::StatusOr<JobRecord> RequestCancel(const std::string& id) override {
    NIBBLE_RETURN_IF_ERROR(db_.Write([&]() -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(const JobRecord job, FindJob(db_, id));
      if (job.cancel_requested || IsTerminal(job.state) || job.state == JobState::kPublishing) {
        return absl::OkStatus();
      }
      NIBBLE_RETURN_IF_ERROR(
          db_.Run("UPDATE jobs SET cancel_requested = 1 WHERE id = ?", id).status());
      NIBBLE_RETURN_IF_ERROR(history_.AddEvent(id, JobEventKind::kCancelRequested));
      if (job.state == JobState::kQueued)
        return endings_.EndJob(id, JobState::kCancelled, JobReason::kNone, "");
      return absl::OkStatus();
    }));
    return GetJob(id);
  }

  absl::Status DeleteJob(const std::string& id) override {
    return db_.Write([&]() -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(const JobRecord job, FindJob(db_, id));
      if (!IsTerminal(job.state)) {
        return absl::FailedPreconditionError(Cat("jobs/", id, " has not ended; cancel it first"));
      }
      return db_.Run("DELETE FROM jobs WHERE id = ?", id).status();
    });
  }

  absl::StatusOr<std::vector<JobEventRecord>> ListEvents(const std::string& id, int64_t after,
                                                         int32_t limit) override {
    const std::lock_guard lock(db_.mutex());
    return history_.ListEvents(id, after, limit);
  }

  absl::StatusOr<int64_t> LastSequence() override {
    const std::lock_guard lock(db_.mutex());
    return history_.LastSequence();
  }

  absl::StatusOr<std::vector<LogRecord>> ListLogs(const std::string& id, int64_t after,
                                                  int32_t limit) override {
    const std::lock_guard lock(db_.mutex());
    NIBBLE_RETURN_IF_ERROR(FindJob(db_, id).status());
    return history_.ListLogs(id, after, limit);
  }

  absl::StatusOr<std::string> GetReport(const std::string& id) override {
    const std::lock_guard lock(db_.mutex());
    NIBBLE_RETURN_IF_ERROR(FindJob(db_, id).status());
    std::string report;
    NIBBLE_RETURN_IF_ERROR(db_.Each(
        "SELECT report FROM jobs WHERE id = ?", [&](Query& row) { report = row.Text(); }, id));
    if (report.empty()) return absl::NotFoundError(Cat("jobs/", id, " has no report"));
    return report;
  }

  absl::StatusOr<std::vector<Count>> CountJobs() override {
    std::vector<Count> counts;
    const std::lock_guard lock(db_.mutex());
    NIBBLE_RETURN_IF_ERROR(db_.Each(
        "SELECT state, recipe, COUNT(*) FROM jobs GROUP BY state, recipe", [&](Query& row) {
          Count& count = counts.emplace_back();
          count.state = static_cast<JobState>(row.Int());
          count.recipe = row.Text();
          count.jobs = row.Int();
        }));
    return counts;
  }

  // ---- workers ----

  absl::StatusOr<std::optional<JobRecord>> LeaseNext(const std::string& worker) override {
    std::optional<JobRecord> leased;
    // Idle workers ask often: they look before they take the write lock.
    NIBBLE_ASSIGN_OR_RETURN(
        const int64_t candidates,
        Locked("SELECT COUNT(*) FROM jobs WHERE state = ?1 OR (state = ?2 AND lease_expiry <= ?3)",
               JobState::kQueued, JobState::kRunning, clock_.Now()));
    if (candidates == 0) return leased;
    NIBBLE_RETURN_IF_ERROR(db_.Write([&]() -> absl::Status {
      NIBBLE_RETURN_IF_ERROR(endings_.RequeueExpired().status());
      const absl::Time now = clock_.Now();
      std::string id;
      // `not_before` is at most an hour away unless the clock was set back since.
      NIBBLE_RETURN_IF_ERROR(db_.Each(
          "SELECT id FROM jobs WHERE state = ? AND (not_before <= ? OR not_before > ?) "
          "ORDER BY number LIMIT 1",
          [&](Query& row) { id = row.Text(); }, JobState::kQueued, now, now + absl::Hours(1)));
      if (id.empty()) return absl::OkStatus();
      const absl::StatusOr<int64_t> waited =
          db_.Integer("SELECT ?1 - queued_time FROM jobs WHERE id = ?2", now, id);
      NIBBLE_RETURN_IF_ERROR(waited.status());
      NIBBLE_RETURN_IF_ERROR(
          db_.Run("UPDATE jobs SET state = ?1, attempt = attempt + 1, "
                  "idle_attempts = idle_attempts + 1, worker = ?2, lease_expiry = ?3, "
                  "start_time = CASE start_time WHEN 0 THEN ?4 ELSE start_time END, "
                  "attempt_time = ?4, block_time = ?4, attempt_fraction = -1, pause_reason = '' "
                  "WHERE id = ?5",
                  JobState::kRunning, worker, now + options_.lease, now, id)
              .status());
      NIBBLE_RETURN_IF_ERROR(history_.AddEvent(id, JobEventKind::kStateChanged, AttemptEnd::kNone,
                                               "",
                                               std::max(0.0, static_cast<double>(*waited) * 1e-6)));
      NIBBLE_ASSIGN_OR_RETURN(leased, FindJob(db_, id));
      return absl::OkStatus();
    }));
    return leased;
  }

  absl::StatusOr<bool> Renew(const Lease& lease) override {
    bool cancel = false;
    NIBBLE_RETURN_IF_ERROR(db_.Write([&]() -> absl::Status {
      const absl::StatusOr<int64_t> changed = db_.Run(
          "UPDATE jobs SET lease_expiry = ? WHERE id = ? AND attempt = ? AND state IN (2, 3)",
          clock_.Now() + options_.lease, lease.job, lease.attempt);
      NIBBLE_RETURN_IF_ERROR(Stands(changed, lease));
      NIBBLE_ASSIGN_OR_RETURN(const int64_t requested, CancelRequested(lease));
      cancel = requested != 0;
      return absl::OkStatus();
    }));
    return cancel;
  }

  absl::StatusOr<bool> CheckLease(const Lease& lease) override {
    const std::lock_guard lock(db_.mutex());
    NIBBLE_ASSIGN_OR_RETURN(
        const int64_t standing,
        db_.Integer("SELECT COUNT(*) FROM jobs WHERE id = ? AND attempt = ? AND state IN (2, 3)",
                    lease.job, lease.attempt));
    NIBBLE_RETURN_IF_ERROR(Stands(standing, lease));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t requested, CancelRequested(lease));
    return requested != 0;
  }

  absl::Status RecordSource(const Lease& lease, const std::string& model_digest,
                            const std::string& texts_digest) override {
    return db_.Write([&]() -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(const JobRecord job, FindRunning(lease));
      if (job.source_digest.empty()) {
        return db_
            .Run("UPDATE jobs SET source_digest = ?, texts_digest = ? WHERE id = ?", model_digest,
                 texts_digest, lease.job)
            .status();
      }
      if (job.source_digest != model_digest) {
        return absl::FailedPreconditionError(Cat("source '", job.source,
                                                 "' changed between attempts: its digest was ",
                                                 job.source_digest, " and is ", model_digest));
      }
      if (job.texts_digest != texts_digest) {
        return absl::FailedPreconditionError(
            "the calibration or evaluation text changed between attempts");
      }
      return absl::OkStatus();
    });
  }

  absl::Status RecordProgress(const Lease& lease, const std::optional<PipelineProgress>& progress,
                              const std::vector<std::string>& log_lines) override {
    return db_.Write([&]() -> absl::Status {
      NIBBLE_RETURN_IF_ERROR(FindRunning(lease).status());
      if (progress.has_value()) {
        NIBBLE_RETURN_IF_ERROR(
            db_.Run(
                   "UPDATE jobs SET phase = ?1, blocks_done = ?2, blocks_total = ?3, "
                   "fraction = ?4, progress_message = ?5, attempt_fraction = "
                   "CASE WHEN attempt_fraction < 0 THEN ?4 ELSE attempt_fraction END WHERE id = ?6",
                   CutText(progress->phase, 64), progress->blocks_done, progress->blocks_total,
                   std::clamp(progress->fraction, 0.0, 1.0), CutText(progress->message, 1024),
                   lease.job)
                .status());
        NIBBLE_RETURN_IF_ERROR(history_.ReplaceProgress(lease.job));
      }
      return history_.AddLogs(lease, log_lines);
    });
  }

  absl::Status CommitCheckpoint(const Lease& lease, const PipelineCheckpoint& checkpoint) override {
    if (checkpoint.files.size() != checkpoint.sha256.size()) {
      return absl::InternalError(Cat("checkpoint: ", checkpoint.files.size(), " files and ",
                                     checkpoint.sha256.size(), " digests"));
    }
    nlohmann::json files = nlohmann::json::array();
    for (size_t i = 0; i < checkpoint.files.size(); ++i) {
      files.push_back({checkpoint.files[i], checkpoint.sha256[i]});
    }
    return db_.Write([&]() -> absl::Status {
      NIBBLE_RETURN_IF_ERROR(FindRunning(lease).status());
      const CheckpointBasis& basis = checkpoint.basis;
      NIBBLE_ASSIGN_OR_RETURN(
          const int64_t same,
          db_.Integer("SELECT COUNT(*) FROM checkpoints WHERE job = ? AND blocks_done >= ? "
                      "AND fingerprint = ? AND tier = ?",
                      lease.job, checkpoint.blocks_done, basis.fingerprint, basis.tier));
      NIBBLE_RETURN_IF_ERROR(
          db_.Run("INSERT INTO checkpoints (job, attempt, blocks_done, files, fingerprint, tier) "
                  "VALUES (?, ?, ?, ?, ?, ?)",
                  lease.job, lease.attempt, checkpoint.blocks_done, files.dump(), basis.fingerprint,
                  basis.tier)
              .status());
      const absl::Time now = clock_.Now();
      NIBBLE_ASSIGN_OR_RETURN(
          const int64_t micros,
          db_.Integer("SELECT ?1 - block_time FROM jobs WHERE id = ?2", now, lease.job));
      NIBBLE_RETURN_IF_ERROR(
          db_.Run("UPDATE jobs SET block_time = ?1, blocks_done = ?2, "
                  "idle_attempts = CASE ?3 WHEN 0 THEN 0 ELSE idle_attempts END WHERE id = ?4",
                  now, checkpoint.blocks_done, same, lease.job)
              .status());
      return history_.AddEvent(lease.job, JobEventKind::kBlockDone, AttemptEnd::kNone, "",
                               std::max(0.0, static_cast<double>(micros) * 1e-6));
    });
  }

  absl::StatusOr<std::vector<PipelineCheckpoint>> Checkpoints(const std::string& id) override {
    std::vector<PipelineCheckpoint> checkpoints;
    const std::lock_guard lock(db_.mutex());
    NIBBLE_RETURN_IF_ERROR(db_.Each(
        "SELECT blocks_done, files, fingerprint, tier FROM checkpoints WHERE job = ? "
        "ORDER BY number",
        [&](Query& row) {
          PipelineCheckpoint& checkpoint = checkpoints.emplace_back();
          checkpoint.blocks_done = row.Int32();
          for (const nlohmann::json& file : nlohmann::json::parse(row.Text())) {
            checkpoint.files.push_back(file.at(0));
            checkpoint.sha256.push_back(file.at(1));
          }
          checkpoint.basis.fingerprint = row.Text();
          checkpoint.basis.tier = row.Text();
        },
        id));
    return checkpoints;
  }

  absl::Status BeginPublish(const Lease& lease, const PublishIntent& intent,
                            const std::string& report) override {
    return db_.Write([&]() -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(const JobRecord job, FindRunning(lease));
      if (job.cancel_requested) {
        return absl::CancelledError(Cat("jobs/", lease.job, " was cancelled"));
      }
      NIBBLE_ASSIGN_OR_RETURN(const bool doomed, artifacts_.IsDoomed(intent.digest));
      if (doomed) {
        return absl::UnavailableError(
            Cat("artifacts directory ", intent.digest, " is being deleted"));
      }
      NIBBLE_RETURN_IF_ERROR(
          db_.Run("UPDATE jobs SET state = ?, artifact_digest = ?, staged = ?, artifact_bytes = ?, "
                  "quality = ?, report = ? WHERE id = ?",
                  JobState::kPublishing, intent.digest, intent.staged, intent.bytes,
                  intent.quality.dump(), report, lease.job)
              .status());
      return history_.AddEvent(lease.job, JobEventKind::kStateChanged);
    });
  }

  absl::Status FinishPublish(const Lease& lease) override {
    return db_.Write([&]() -> absl::Status {
      NIBBLE_RETURN_IF_ERROR(Stands(artifacts_.Add(lease), lease));
      return endings_.EndJob(lease.job, JobState::kSucceeded, JobReason::kNone, "");
    });
  }

  absl::Status Fail(const Lease& lease, JobReason reason, const std::string& message,
                    const std::string& report) override {
    return db_.Write([&]() -> absl::Status {
      NIBBLE_RETURN_IF_ERROR(FindRunning(lease).status());
      NIBBLE_RETURN_IF_ERROR(
          db_.Run("UPDATE jobs SET report = ? WHERE id = ?", report, lease.job).status());
      return endings_.EndJob(lease.job, JobState::kFailed, reason, message);
    });
  }

  absl::Status EndAttempt(const Lease& lease, AttemptEnd end, const std::string& message,
                          absl::Duration delay) override {
    return db_.Write([&]() -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(
          const int64_t standing,
          db_.Integer("SELECT COUNT(*) FROM jobs WHERE id = ? AND attempt = ? AND state IN (2, 3)",
                      lease.job, lease.attempt));
      NIBBLE_RETURN_IF_ERROR(Stands(standing, lease));
      NIBBLE_ASSIGN_OR_RETURN(const JobRecord job, FindJob(db_, lease.job));
      return endings_.EndAttempt(job, end, message, delay);
    });
  }

  // ---- the service ----

  absl::StatusOr<int> ReclaimExpired() override {
    int count = 0;
    NIBBLE_ASSIGN_OR_RETURN(
        const int64_t expired,
        Locked("SELECT COUNT(*) FROM jobs WHERE state = ? AND lease_expiry <= ?",
               JobState::kRunning, clock_.Now()));
    if (expired == 0) return count;
    NIBBLE_RETURN_IF_ERROR(db_.Write([&]() -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(count, endings_.RequeueExpired());
      return absl::OkStatus();
    }));
    return count;
  }

  absl::StatusOr<int> ReclaimFrom(const std::string& worker, const std::string& message) override {
    int count = 0;
    NIBBLE_RETURN_IF_ERROR(db_.Write([&]() -> absl::Status {
      std::vector<JobRecord> jobs;
      const std::string prefix = worker + "@";
      NIBBLE_RETURN_IF_ERROR(db_.Each(
          "SELECT " NIBBLE_JOB_COLUMNS " FROM jobs WHERE state = ?1 AND substr(worker, 1, ?2) = ?3",
          [&](Query& row) { ReadJob(row, jobs.emplace_back()); }, JobState::kRunning,
          static_cast<int64_t>(prefix.size()), prefix));
      for (const JobRecord& job : jobs) {
        NIBBLE_RETURN_IF_ERROR(
            endings_.EndAttempt(job, AttemptEnd::kCrashed, message, absl::ZeroDuration()));
      }
      count = static_cast<int>(jobs.size());
      return absl::OkStatus();
    }));
    return count;
  }

  absl::StatusOr<std::optional<JobRecord>> TakeOverPublish(const std::string& worker) override {
    std::optional<JobRecord> taken;
    NIBBLE_ASSIGN_OR_RETURN(
        const int64_t publishing,
        Locked("SELECT COUNT(*) FROM jobs WHERE state = ?", JobState::kPublishing));
    if (publishing == 0) return taken;
    NIBBLE_RETURN_IF_ERROR(db_.Write([&]() -> absl::Status {
      const absl::Time now = clock_.Now();
      std::vector<JobRecord> jobs;
      NIBBLE_RETURN_IF_ERROR(db_.Each(
          "SELECT " NIBBLE_JOB_COLUMNS " FROM jobs WHERE state = ? ORDER BY number",
          [&](Query& row) { ReadJob(row, jobs.emplace_back()); }, JobState::kPublishing));
      for (const JobRecord& job : jobs) {
        if (job.lease_expiry > now && options_.worker_lives(job.worker)) continue;
        NIBBLE_RETURN_IF_ERROR(
            db_.Run("UPDATE jobs SET attempt = attempt + 1, worker = ?, lease_expiry = ? "
                    "WHERE id = ?",
                    worker, now + options_.lease, job.id)
                .status());
        NIBBLE_ASSIGN_OR_RETURN(taken, FindJob(db_, job.id));
        break;
      }
      return absl::OkStatus();
    }));
    return taken;
  }

  // ---- artifacts ----

  absl::StatusOr<ArtifactRecord> GetArtifact(const std::string& id) override {
    const std::lock_guard lock(db_.mutex());
    return artifacts_.Get(id);
  }

  absl::StatusOr<ArtifactPage> ListArtifacts(const std::string& tenant, int32_t limit,
                                             int64_t before) override {
    const std::lock_guard lock(db_.mutex());
    return artifacts_.List(tenant, limit, before);
  }

  absl::StatusOr<int64_t> ArtifactBytes() override {
    const std::lock_guard lock(db_.mutex());
    return artifacts_.Bytes();
  }

  absl::StatusOr<std::optional<std::string>> DeleteArtifact(const std::string& id) override {
    std::optional<std::string> doomed;
    NIBBLE_RETURN_IF_ERROR(db_.Write([&]() -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(doomed, artifacts_.Delete(id));
      return absl::OkStatus();
    }));
    return doomed;
  }

  absl::StatusOr<bool> DoomIfOrphan(const std::string& digest) override {
    bool orphan = false;
    NIBBLE_RETURN_IF_ERROR(db_.Write([&]() -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(orphan, artifacts_.DoomIfOrphan(digest));
      return absl::OkStatus();
    }));
    return orphan;
  }

  absl::StatusOr<std::vector<std::string>> ListDoomed() override {
    const std::lock_guard lock(db_.mutex());
    return artifacts_.ListDoomed();
  }

  absl::Status FinishDelete(const std::string& digest) override {
    return db_.Write([&] { return artifacts_.FinishDelete(digest); });
  }

 private:
  // A number read under the mutex, outside any transaction.
  template <typename... Parameters>
  absl::StatusOr<int64_t> Locked(const char* sql, const Parameters&... parameters) {
    const std::lock_guard lock(db_.mutex());
    return db_.Integer(sql, parameters...);
  }

  // Everything below runs under the database's mutex, the writing ones inside a transaction.

  // The compare of every compare-and-set on (job, attempt, RUNNING). The transaction that calls it
  // holds the write lock, so what it read cannot change before it commits.
  absl::StatusOr<JobRecord> FindRunning(const Lease& lease) {
    absl::StatusOr<JobRecord> job = FindJob(db_, lease.job);
    const bool stands =
        job.ok() && job->attempt == lease.attempt && job->state == JobState::kRunning;
    if (!stands) {
      if (!job.ok() && !absl::IsNotFound(job.status())) return job.status();
      return Lost(lease);
    }
    return job;
  }

  static absl::Status Lost(const Lease& lease) {
    return absl::AbortedError(
        Cat("attempt ", lease.attempt, " of jobs/", lease.job, " has lost its lease"));
  }

  // Of the number of rows that matched a lease.
  static absl::Status Stands(const absl::StatusOr<int64_t>& rows, const Lease& lease) {
    if (!rows.ok()) return rows.status();
    return *rows == 0 ? Lost(lease) : absl::OkStatus();
  }

  absl::StatusOr<int64_t> CancelRequested(const Lease& lease) {
    return db_.Integer("SELECT cancel_requested FROM jobs WHERE id = ?", lease.job);
  }

  SqliteDatabase& db_;
  const Clock& clock_;
  const LeaseOptions options_;
  SqliteJobHistory history_;
  SqliteJobEndings endings_;
  SqliteJobIntake intake_;
  SqliteArtifacts artifacts_;
};

}  // namespace

std::unique_ptr<JobStore> MakeSqliteJobStore(SqliteDatabase& database, const Clock& clock,
                                             LeaseOptions options) {
  return std::make_unique<SqliteJobStore>(database, clock, std::move(options));
}

}  // namespace nibble
