// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/worker.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/artifact/sha256.h"
#include "engine/artifact/source_files.h"
#include "engine/base/posix_status.h"
#include "services/common/log.h"
#include "services/quantization/job_spec.h"
#include "services/quantization/publish.h"
#include "services/quantization/quality.h"
#include "services/quantization/source_files.h"
#include "services/quantization/status_macros.h"
#include "services/quantization/store_job_host.h"

namespace nibble {
namespace {

constexpr int64_t kMaxReportHtml = 2 << 20;  // bytes, as the contract says
constexpr std::chrono::milliseconds kRetryPause{200};

// The file of a calibration set or GGUF model, the directory of any other model.
std::string ResourcePath(const DataLayout& layout, const ResourceRecord& resource) {
  const std::string directory = layout.Source(resource.directory);
  return resource.files.size() == 1 ? absl::StrCat(directory, "/", resource.files.front().name)
                                    : directory;
}

// Writes to the store that must not be lost because it was locked for a moment. Ends early when the
// lease is lost.
absl::Status Persist(LeaseKeeper& keeper, const std::function<absl::Status()>& write) {
  for (;;) {
    const absl::Status status = write();
    if (!absl::IsUnavailable(status) || absl::IsAborted(keeper.Standing())) return status;
    std::this_thread::sleep_for(kRetryPause);
  }
}

}  // namespace

// The opened sources of an attempt, and where the pipeline finds them.
struct Worker::Inputs {
  std::vector<OpenSource> open;
  std::string texts;  // digests of texts named by path
};

Worker::Worker(WorkerOptions options, JobStore& jobs, ResourceStore& resources, FileSystem& fs,
               Pipeline pipeline, const std::atomic<bool>& drain)
    : options_(std::move(options)),
      jobs_(jobs),
      resources_(resources),
      fs_(fs),
      pipeline_(std::move(pipeline)),
      drain_(drain) {}

void Worker::Run() {
  while (!drain_) {
    absl::StatusOr<bool> ran = RunOne();
    if (!ran.ok()) LogWarning("worker_store_error", {{"error", ran.status().ToString()}});
    if (!ran.ok() || !*ran) std::this_thread::sleep_for(options_.idle_poll);
  }
}

absl::StatusOr<bool> Worker::RunOne() {
  NIBBLE_ASSIGN_OR_RETURN(const std::optional<JobRecord> job, jobs_.LeaseNext(options_.identity));
  if (!job.has_value()) return false;
  LogInfo("attempt_begins", {{"job", job->id}, {"attempt", absl::StrCat(job->attempt)}});
  const absl::Status status = RunAttempt(*job);
  LogInfo(
      "attempt_ends",
      {{"job", job->id}, {"attempt", absl::StrCat(job->attempt)}, {"store", status.ToString()}});
  // A lost lease is somebody else's job by now, not an error of the store.
  if (!status.ok() && !absl::IsAborted(status)) return status;
  return true;
}

absl::Status Worker::RunAttempt(const JobRecord& job) {
  const Lease lease{job.id, job.attempt};
  LeaseKeeper keeper(jobs_, lease, options_.times, options_.on_last_resort);
  NIBBLE_ASSIGN_OR_RETURN(std::vector<PipelineCheckpoint> checkpoints, jobs_.Checkpoints(job.id));
  StoreJobHost host(jobs_, lease, keeper, drain_, std::move(checkpoints));

  const absl::StatusOr<PipelineResult> result = RunJob(job, host);
  host.Flush().IgnoreError();  // the last lines, if the lease still stands
  if (!result.ok()) return EndFailed(job, result.status(), keeper);
  if (!result->gate_passed) {
    KeepReport(job, result->artifact_dir);
    return Persist(keeper, [&] {
      return jobs_.Fail(lease, JobReason::kGateFailed, result->gate_message, result->report.dump());
    });
  }
  return Publish(job, *result, keeper);
}

absl::StatusOr<PipelineResult> Worker::RunJob(const JobRecord& job, JobHost& host) {
  v1::JobSpec spec;
  if (!spec.ParseFromString(job.spec)) {
    return absl::InvalidArgumentError("the stored job spec cannot be read");
  }
  NIBBLE_ASSIGN_OR_RETURN(PipelineSpec pipeline, PipelineSpecOf(spec));

  const DataLayout& layout = options_.layout;
  const std::string job_dir = layout.Job(job.id);
  const std::string work_dir = layout.Attempt(job.id, job.attempt);
  if (absl::Status made = fs_.CreateDirectory(job_dir);
      !made.ok() && !absl::IsAlreadyExists(made)) {
    return made;
  }
  NIBBLE_RETURN_IF_ERROR(fs_.CreateDirectory(work_dir));
  NIBBLE_RETURN_IF_ERROR(fs_.SyncDirectory(job_dir));
  NIBBLE_RETURN_IF_ERROR(fs_.SyncDirectory(layout.Jobs()));

  const auto keep_going = [&host] { return host.KeepGoing(); };
  Inputs inputs;
  // Links a path-named source into the work directory; returns where it is found there.
  const auto link = [&](const std::string& path, const char* as) -> absl::StatusOr<std::string> {
    NIBBLE_ASSIGN_OR_RETURN(OpenSource source, OpenSource::Open(options_.model_root, path));
    const std::string directory = absl::StrCat(work_dir, "/", as);
    NIBBLE_RETURN_IF_ERROR(fs_.CreateDirectory(directory));
    NIBBLE_ASSIGN_OR_RETURN(std::string found, source.LinkInto(directory));
    inputs.open.push_back(std::move(source));
    return found;
  };
  const auto find_text = [&](const v1::TextSource& text,
                             const char* as) -> absl::StatusOr<std::string> {
    if (text.source_case() == v1::TextSource::kCalibrationSet) {
      NIBBLE_ASSIGN_OR_RETURN(const ResourceRecord resource,
                              resources_.GetResource(text.calibration_set()));
      return ResourcePath(layout, resource);
    }
    NIBBLE_ASSIGN_OR_RETURN(std::string path, link(text.path(), as));
    NIBBLE_ASSIGN_OR_RETURN(const std::string digest, Sha256OfFile(path, keep_going));
    inputs.texts += digest;
    return path;
  };

  host.Report({"digest", job.progress.blocks_done, job.progress.blocks_total, job.progress.fraction,
               "digesting the source"});
  if (spec.source_case() == v1::JobSpec::kModel) {
    NIBBLE_ASSIGN_OR_RETURN(const ResourceRecord model, resources_.GetResource(spec.model()));
    pipeline.model_path = ResourcePath(layout, model);
  } else {
    NIBBLE_ASSIGN_OR_RETURN(pipeline.model_path, link(spec.model_path(), "source"));
  }
  if (spec.has_calibration()) {
    NIBBLE_ASSIGN_OR_RETURN(pipeline.calibration_path,
                            find_text(spec.calibration(), "calibration"));
  }
  if (spec.has_evaluation()) {
    NIBBLE_ASSIGN_OR_RETURN(pipeline.eval_path, find_text(spec.evaluation(), "evaluation"));
  }
  // Once for each attempt: the first one's is recorded, later ones' are compared with it.
  NIBBLE_ASSIGN_OR_RETURN(pipeline.model_digest, SourceDigest(pipeline.model_path, keep_going));
  NIBBLE_RETURN_IF_ERROR(
      jobs_.RecordSource({job.id, job.attempt}, pipeline.model_digest, inputs.texts));
  return pipeline_(pipeline, fs_, work_dir, job_dir, host);
}

absl::Status Worker::Publish(const JobRecord& job, const PipelineResult& result,
                             LeaseKeeper& keeper) {
  const Lease lease{job.id, job.attempt};
  const DataLayout& layout = options_.layout;
  const std::string prefix = layout.root + "/";
  if (result.artifact_dir.compare(0, prefix.size(), prefix) != 0) {
    return absl::InternalError(
        absl::StrCat("the artifact '", result.artifact_dir, "' is not in the data directory"));
  }
  const std::string staged = result.artifact_dir.substr(prefix.size());
  const absl::Status begun = Persist(keeper, [&] {
    return jobs_.BeginPublish(
        lease, {result.digest, staged, result.artifact_bytes, QualityFromReport(result.report)},
        result.report.dump());
  });
  if (!begun.ok()) return EndFailed(job, begun, keeper);
  KeepReport(job, result.artifact_dir);
  if (absl::Status moved = MoveIntoPlace(fs_, layout, staged, result.digest); !moved.ok()) {
    LogWarning("publish_error", {{"job", job.id}, {"error", moved.ToString()}});
    return EndForNow(job, moved, keeper);
  }
  return Persist(keeper, [&] { return jobs_.FinishPublish(lease); });
}

absl::Status Worker::EndFailed(const JobRecord& job, const absl::Status& error,
                               LeaseKeeper& keeper) {
  const Lease lease{job.id, job.attempt};
  const std::string message(error.message());
  LogWarning("attempt_error", {{"job", job.id}, {"error", error.ToString()}});
  const auto fail = [&](JobReason reason) {
    return Persist(keeper, [&] { return jobs_.Fail(lease, reason, message, ""); });
  };
  switch (error.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
      return fail(JobReason::kInvalidInput);
    case absl::StatusCode::kFailedPrecondition:
      return fail(JobReason::kSourceChanged);
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kAborted:
      return Persist(keeper, [&] {
        return jobs_.EndAttempt(lease, AttemptEnd::kDrained, message, absl::ZeroDuration());
      });
    default:
      return EndForNow(job, error, keeper);
  }
}

absl::Status Worker::EndForNow(const JobRecord& job, const absl::Status& error,
                               LeaseKeeper& keeper) {
  const bool full = IsDiskFull(error);
  if (full) {
    // What this attempt wrote and no checkpoint names is not needed for going on.
    const std::string attempt = options_.layout.Attempt(job.id, job.attempt);
    fs_.RemoveTree(attempt + "/artifact").IgnoreError();
    fs_.RemoveTree(attempt + "/parts").IgnoreError();
  }
  return Persist(keeper, [&] {
    return jobs_.EndAttempt({job.id, job.attempt}, full ? AttemptEnd::kPaused : AttemptEnd::kFailed,
                            std::string(error.message()),
                            full ? absl::FromChrono(options_.disk_full_delay) : absl::Duration());
  });
}

void Worker::KeepReport(const JobRecord& job, const std::string& artifact_dir) {
  // Best effort: the figures are in the store; this is the page for people.
  std::ifstream file(artifact_dir + "/report.html", std::ios::binary);
  if (!file) return;
  const std::string html((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (static_cast<int64_t>(html.size()) > kMaxReportHtml) return;
  const std::string path = options_.layout.ReportHtml(job.id);
  fs_.RemoveTree(path).IgnoreError();
  absl::StatusOr<std::unique_ptr<WritableFile>> copy = fs_.Create(path);
  if (!copy.ok()) return;
  absl::Status status = (*copy)->Append(html);
  if (status.ok()) status = (*copy)->Sync();
  if (status.ok()) status = (*copy)->Close();
  if (!status.ok()) fs_.RemoveTree(path).IgnoreError();
}

}  // namespace nibble
