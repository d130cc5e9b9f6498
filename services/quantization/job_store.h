// SPDX-License-Identifier: Apache-2.0
// The durable record of jobs, and the rules by which workers share them.
//
// States:   QUEUED -> RUNNING -> PUBLISHING -> SUCCEEDED
//             ^  |       |  |         |
//             |  |       |  |         +-> QUEUED     (nothing was left to publish)
//             |  |       |  +-----------> FAILED     (gate, wrong input, attempts exhausted)
//             |  |       +--------------> QUEUED     (attempt ended: crash, lost lease, drain, ...)
//             |  +----------------------> CANCELLED  (also from RUNNING)
//
// A worker leases a job. The lease carries a fencing token, the attempt number, which grows with
// every lease; every write of a worker is a compare-and-set on (job, attempt, state) and fails with
// Aborted once another attempt has begun. So a worker that was stopped, cut off or is late can do
// no harm, whatever it believes. Lease times are on the store's clock; a jump of that clock may
// cost a retry, never correctness.
//
// What is on disk counts only when the store names it: checkpoint files by CommitCheckpoint, an
// artifact by BeginPublish and FinishPublish.
//
// All methods are thread-safe, and several processes may use one store. Errors besides those named:
// Unavailable (locked for too long; retry), a full disk (IsDiskFull), DataLoss, Internal.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/quant/pipeline.h"

namespace nibble {

// The numbers are stored, and are those of nibble.v1.Job.State.
enum class JobState : uint8_t {
  kQueued = 1,
  kRunning = 2,
  kPublishing = 3,
  kSucceeded = 4,
  kFailed = 5,
  kCancelled = 6,
};
inline constexpr bool IsTerminal(JobState state) { return state >= JobState::kSucceeded; }

// The numbers are stored, and are those of nibble.v1.Job.Reason.
enum class JobReason : uint8_t {
  kNone = 0,
  kGateFailed = 1,
  kInvalidInput = 2,
  kSourceChanged = 3,
  kAttemptsExhausted = 4,
};

// The numbers are stored, and are those of nibble.v1.JobEvent.Kind.
enum class JobEventKind : uint8_t {
  kStateChanged = 2,
  kBlockDone = 3,
  kProgress = 4,
  kAttemptEnded = 5,
  kCancelRequested = 6,
};

// Why an attempt ended without ending the job. The numbers are stored.
enum class AttemptEnd : uint8_t {
  kNone = 0,
  kCrashed = 1,    // its process died; counts towards kMaxIdleAttempts
  kFailed = 2,     // the pipeline returned an error that may pass; counts
  kDrained = 3,    // the worker was asked to stop
  kPaused = 4,     // a full disk
  kLeaseLost = 5,  // its process lives, but did not renew in time
};

// A job fails after so many consecutive attempts that committed no new block.
inline constexpr int kMaxIdleAttempts = 3;
inline constexpr int kMaxLogLines = 10000;
inline constexpr size_t kMaxLogLineBytes = 4096;
inline constexpr int kMaxJobEvents = 2000;

struct NewJob {
  std::string id;
  std::string tenant;          // owns it
  std::string creator;         // who of the tenant; request ids are scoped to (tenant, creator)
  std::string request_id;      // "" = not repeatable
  std::string request_digest;  // identifies the request's contents
  std::string spec;            // opaque to the store
  std::string recipe;          // a built-in's name or "custom"
  std::string scheme;          // of the blocks' linears
  std::string kv_format;       //
  std::string source;          // "models/x", or a path beneath the model root
  std::string artifact_id;     // reserved until the job ends
  std::vector<std::string> resources;  // "models/x", "calibrationSets/y": must exist, and cannot be
                                       // deleted until the job ends
  int32_t max_queued = 1000;           // unfinished jobs of the tenant
};

struct JobRecord {
  std::string id;
  std::string tenant;
  std::string creator;
  std::string spec;
  std::string recipe;
  std::string scheme;
  std::string kv_format;
  std::string source;
  std::string artifact_id;
  JobState state = JobState::kQueued;
  JobReason reason = JobReason::kNone;
  std::string message;
  std::string pause_reason;
  bool cancel_requested = false;
  int64_t attempt = 0;        // of the current or last lease; 0 = never leased
  int32_t idle_attempts = 0;  // consecutive ones that committed no new block, the current included
  int64_t leases_lost = 0;
  std::string worker;  // who holds the lease
  absl::Time lease_expiry = absl::InfinitePast();
  absl::Time not_before = absl::InfinitePast();  // QUEUED: not leased earlier
  absl::Time create_time = absl::InfinitePast();
  absl::Time start_time = absl::InfinitePast();    // of the first attempt
  absl::Time attempt_time = absl::InfinitePast();  // of the current attempt
  absl::Time end_time = absl::InfinitePast();
  double attempt_fraction = 0;  // progress when the current attempt first reported, for estimates
  PipelineProgress progress;
  std::string source_digest;
  std::string texts_digest;
  std::string artifact_digest;
  std::string staged;  // PUBLISHING: the directory to be renamed, relative to the data directory
  int64_t artifact_bytes = 0;
  int64_t sequence = 0;  // of its newest event
};

struct JobPage {
  std::vector<JobRecord> jobs;  // newest first
  int64_t next = 0;             // pass as `before` for the next page; 0 = the end
};

struct JobEventRecord {
  int64_t sequence = 0;
  std::string job;
  absl::Time time = absl::InfinitePast();
  JobEventKind kind = JobEventKind::kStateChanged;
  JobState state = JobState::kQueued;
  int64_t attempt = 0;
  AttemptEnd end = AttemptEnd::kNone;
  PipelineProgress progress;
  std::string message;
  double seconds = 0;  // to RUNNING: waited in the queue; BLOCK_DONE: since the block before it or
                       // the attempt's beginning
};

struct LogRecord {
  int64_t line = 0;  // grows
  absl::Time time = absl::InfinitePast();
  int64_t attempt = 0;
  std::string text;
};

struct Lease {
  std::string job;
  int64_t attempt = 0;
};

struct PublishIntent {
  std::string digest;
  std::string staged;  // relative to the data directory
  int64_t bytes = 0;
  nlohmann::json quality;  // JSON object of figures, kept with the artifact
};

struct ArtifactRecord {
  std::string id;
  std::string digest;
  int64_t bytes = 0;
  std::string scheme;
  std::string recipe;
  std::string kv_format;
  nlohmann::json quality;
  std::string job;
  std::string source;
  std::string source_digest;
  std::string tenant;
  std::string creator;
  absl::Time create_time = absl::InfinitePast();
};

struct ArtifactPage {
  std::vector<ArtifactRecord> artifacts;  // newest first
  int64_t next = 0;
};

class JobStore {
 public:
  virtual ~JobStore() = default;

  // ---- what callers ask for ----

  // Queues a job. With a request id the creator already used: the job of then if the digest is the
  // same, else AlreadyExists. AlreadyExists if the artifact id is taken, NotFound if a resource is
  // missing, ResourceExhausted beyond max_queued.
  virtual absl::StatusOr<JobRecord> CreateJob(const NewJob& job) = 0;
  // The job that an earlier request of that id made, nullopt if there is none; AlreadyExists if its
  // digest was another.
  virtual absl::StatusOr<std::optional<JobRecord>> FindRequest(
      const std::string& tenant, const std::string& creator, const std::string& request_id,
      const std::string& request_digest) = 0;
  virtual absl::StatusOr<JobRecord> GetJob(const std::string& id) = 0;
  // Jobs of `tenant` ("" = any) in one of `states` (empty = any), older than `before` (0 = from the
  // newest).
  virtual absl::StatusOr<JobPage> ListJobs(const std::string& tenant,
                                           const std::vector<JobState>& states, int32_t limit,
                                           int64_t before) = 0;
  // QUEUED becomes CANCELLED, RUNNING is asked to stop, others stay as they are.
  virtual absl::StatusOr<JobRecord> RequestCancel(const std::string& id) = 0;
  // FailedPrecondition unless it has ended.
  virtual absl::Status DeleteJob(const std::string& id) = 0;
  // Events with a larger sequence, in order: of one job, or of all of them if `id` is empty. Of
  // progress only the newest is kept.
  virtual absl::StatusOr<std::vector<JobEventRecord>> ListEvents(const std::string& id,
                                                                 int64_t after, int32_t limit) = 0;
  virtual absl::StatusOr<int64_t> LastSequence() = 0;
  // Lines with a larger number, in order.
  virtual absl::StatusOr<std::vector<LogRecord>> ListLogs(const std::string& id, int64_t after,
                                                          int32_t limit) = 0;
  // The contents of report.json; NotFound if the job has none.
  virtual absl::StatusOr<std::string> GetReport(const std::string& id) = 0;
  // Number of jobs by (state, recipe).
  struct Count {
    JobState state;
    std::string recipe;
    int64_t jobs;
  };
  virtual absl::StatusOr<std::vector<Count>> CountJobs() = 0;

  // ---- what workers do ----

  // Requeues jobs whose lease has run out, then leases the oldest one that may run; nullopt if
  // there is none. `worker` is a worker identity (worker_identity.h).
  virtual absl::StatusOr<std::optional<JobRecord>> LeaseNext(const std::string& worker) = 0;
  // Extends the lease, also while PUBLISHING; returns whether the job is to be cancelled.
  virtual absl::StatusOr<bool> Renew(const Lease& lease) = 0;
  // Whether the lease still stands, and whether the job is to be cancelled, without writing.
  virtual absl::StatusOr<bool> CheckLease(const Lease& lease) = 0;
  // Remembers what model and texts were. FailedPrecondition if an earlier attempt saw other
  // digests.
  virtual absl::Status RecordSource(const Lease& lease, const std::string& model_digest,
                                    const std::string& texts_digest) = 0;
  virtual absl::Status RecordProgress(const Lease& lease,
                                      const std::optional<PipelineProgress>& progress,
                                      const std::vector<std::string>& log_lines) = 0;
  // Of a block that no checkpoint of the same basis has yet, it resets the count of idle attempts.
  virtual absl::Status CommitCheckpoint(const Lease& lease,
                                        const PipelineCheckpoint& checkpoint) = 0;
  // Oldest first.
  virtual absl::StatusOr<std::vector<PipelineCheckpoint>> Checkpoints(const std::string& id) = 0;
  // RUNNING -> PUBLISHING. Cancelled if that was requested; Unavailable while a directory of that
  // digest is being deleted (retry).
  virtual absl::Status BeginPublish(const Lease& lease, const PublishIntent& intent,
                                    const std::string& report) = 0;
  // PUBLISHING -> SUCCEEDED, and the artifact is listed.
  virtual absl::Status FinishPublish(const Lease& lease) = 0;
  // RUNNING -> FAILED.
  virtual absl::Status Fail(const Lease& lease, JobReason reason, const std::string& message,
                            const std::string& report) = 0;
  // RUNNING or PUBLISHING -> QUEUED (not before `delay` has passed), or CANCELLED if that was
  // requested, or FAILED if it was the last idle attempt. `end` is not kNone.
  virtual absl::Status EndAttempt(const Lease& lease, AttemptEnd end, const std::string& message,
                                  absl::Duration delay) = 0;

  // ---- what the service looks after ----

  // Requeues RUNNING jobs whose lease has run out. A dead worker's attempt counts as crashed, a
  // living one's as a lost lease. Returns how many.
  virtual absl::StatusOr<int> ReclaimExpired() = 0;
  // Ends the attempts of a worker that is known to be dead, without waiting for the lease. `worker`
  // is the name part of its identity. A PUBLISHING job stays as it is, for TakeOverPublish.
  virtual absl::StatusOr<int> ReclaimFrom(const std::string& worker,
                                          const std::string& message) = 0;
  // Takes a PUBLISHING job over whose lease has run out or whose worker is dead, under a new
  // attempt; nullopt if there is none.
  virtual absl::StatusOr<std::optional<JobRecord>> TakeOverPublish(const std::string& worker) = 0;

  // ---- artifacts ----

  virtual absl::StatusOr<ArtifactRecord> GetArtifact(const std::string& id) = 0;
  virtual absl::StatusOr<ArtifactPage> ListArtifacts(const std::string& tenant, int32_t limit,
                                                     int64_t before) = 0;
  // Of all published artifacts; directories that several share count once.
  virtual absl::StatusOr<int64_t> ArtifactBytes() = 0;
  // Takes it out of the list. Returns its digest if its directory is nobody's any more: it is then
  // doomed, and stays so until FinishDelete.
  virtual absl::StatusOr<std::optional<std::string>> DeleteArtifact(const std::string& id) = 0;
  // Dooms a directory that no artifact and no publishing job names; false if one does.
  virtual absl::StatusOr<bool> DoomIfOrphan(const std::string& digest) = 0;
  virtual absl::StatusOr<std::vector<std::string>> ListDoomed() = 0;
  virtual absl::Status FinishDelete(const std::string& digest) = 0;
};

}  // namespace nibble
