// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/convert.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace nibble {
namespace {

static_assert(static_cast<int>(JobState::kQueued) == v1::Job::QUEUED);
static_assert(static_cast<int>(JobState::kRunning) == v1::Job::RUNNING);
static_assert(static_cast<int>(JobState::kPublishing) == v1::Job::PUBLISHING);
static_assert(static_cast<int>(JobState::kSucceeded) == v1::Job::SUCCEEDED);
static_assert(static_cast<int>(JobState::kFailed) == v1::Job::FAILED);
static_assert(static_cast<int>(JobState::kCancelled) == v1::Job::CANCELLED);
static_assert(static_cast<int>(JobReason::kGateFailed) == v1::Job::GATE_FAILED);
static_assert(static_cast<int>(JobReason::kInvalidInput) == v1::Job::INVALID_INPUT);
static_assert(static_cast<int>(JobReason::kSourceChanged) == v1::Job::SOURCE_CHANGED);
static_assert(static_cast<int>(JobReason::kAttemptsExhausted) == v1::Job::ATTEMPTS_EXHAUSTED);
static_assert(static_cast<int>(JobEventKind::kStateChanged) == v1::JobEvent::STATE_CHANGED);
static_assert(static_cast<int>(JobEventKind::kBlockDone) == v1::JobEvent::BLOCK_DONE);
static_assert(static_cast<int>(JobEventKind::kProgress) == v1::JobEvent::PROGRESS);
static_assert(static_cast<int>(JobEventKind::kAttemptEnded) == v1::JobEvent::ATTEMPT_ENDED);
static_assert(static_cast<int>(JobEventKind::kCancelRequested) == v1::JobEvent::CANCEL_REQUESTED);
static_assert(static_cast<int>(ResourceKind::kModel) == v1::Upload::MODEL);
static_assert(static_cast<int>(ResourceKind::kCalibrationSet) == v1::Upload::CALIBRATION_SET);
static_assert(static_cast<int>(UploadState::kActive) == v1::Upload::ACTIVE);
static_assert(static_cast<int>(UploadState::kFinished) == v1::Upload::FINISHED);

void SetTime(absl::Time time, google::protobuf::Timestamp* proto) {
  const int64_t micros = absl::ToUnixMicros(time);
  proto->set_seconds(micros / 1'000'000);
  proto->set_nanos(static_cast<int32_t>(micros % 1'000'000) * 1000);
}

bool IsSet(absl::Time time) { return time != absl::InfinitePast(); }

void SetFile(const FileRecord& file, v1::UploadFile* proto) {
  proto->set_name(file.name);
  proto->set_size_bytes(file.bytes);
  proto->set_sha256(file.sha256);
  proto->set_synced_bytes(file.synced_bytes);
}

void SetProgress(const PipelineProgress& progress, v1::Progress* proto) {
  proto->set_phase(progress.phase);
  proto->set_blocks_done(progress.blocks_done);
  proto->set_blocks_total(progress.blocks_total);
  proto->set_fraction(progress.fraction);
  proto->set_message(progress.message);
}

}  // namespace

v1::Upload ToProto(const UploadRecord& upload) {
  v1::Upload proto;
  proto.set_name(absl::StrCat("uploads/", upload.id));
  proto.set_kind(static_cast<v1::Upload::Kind>(upload.kind));
  proto.set_state(static_cast<v1::Upload::State>(upload.state));
  proto.set_resource(upload.resource);
  for (const FileRecord& file : upload.files) SetFile(file, proto.add_files());
  SetTime(upload.create_time, proto.mutable_create_time());
  SetTime(upload.expire_time, proto.mutable_expire_time());
  return proto;
}

v1::Model ModelToProto(const ResourceRecord& model) {
  v1::Model proto;
  proto.set_name(model.name);
  proto.set_digest(model.digest);
  proto.set_size_bytes(model.bytes());
  for (const FileRecord& file : model.files) SetFile(file, proto.add_files());
  SetTime(model.create_time, proto.mutable_create_time());
  return proto;
}

v1::CalibrationSet CalibrationSetToProto(const ResourceRecord& set) {
  v1::CalibrationSet proto;
  proto.set_name(set.name);
  for (const FileRecord& file : set.files) SetFile(file, proto.mutable_file());
  SetTime(set.create_time, proto.mutable_create_time());
  return proto;
}

v1::Job ToProto(const JobRecord& job, absl::Time now) {
  v1::Job proto;
  proto.set_name(absl::StrCat("jobs/", job.id));
  proto.mutable_spec()->ParseFromString(job.spec);
  proto.set_state(static_cast<v1::Job::State>(job.state));
  proto.set_reason(static_cast<v1::Job::Reason>(job.reason));
  proto.set_message(job.message);
  proto.set_pause_reason(job.pause_reason);
  proto.set_cancel_requested(job.cancel_requested);
  SetProgress(job.progress, proto.mutable_progress());
  // From the pace of this attempt, which may have begun in the middle.
  const double gained = job.progress.fraction - job.attempt_fraction;
  if (job.state == JobState::kRunning && job.attempt_fraction >= 0 && gained > 0.005 &&
      now > job.attempt_time) {
    const double elapsed = absl::ToDoubleSeconds(now - job.attempt_time);
    proto.mutable_progress()->set_eta_seconds(elapsed * (1 - job.progress.fraction) / gained);
  }
  proto.set_attempts(job.attempt);
  proto.set_leases_lost(job.leases_lost);
  proto.set_source_digest(job.source_digest);
  if (job.state == JobState::kSucceeded) {
    proto.set_artifact(absl::StrCat("artifacts/", job.artifact_id));
  }
  proto.set_artifact_digest(job.artifact_digest);
  proto.set_creator(job.creator);
  SetTime(job.create_time, proto.mutable_create_time());
  if (IsSet(job.start_time)) SetTime(job.start_time, proto.mutable_start_time());
  if (IsSet(job.end_time)) SetTime(job.end_time, proto.mutable_end_time());
  proto.set_sequence(job.sequence);
  return proto;
}

v1::JobEvent ToProto(const JobEventRecord& event) {
  v1::JobEvent proto;
  proto.set_sequence(event.sequence);
  SetTime(event.time, proto.mutable_time());
  proto.set_kind(static_cast<v1::JobEvent::Kind>(event.kind));
  proto.set_state(static_cast<v1::Job::State>(event.state));
  proto.set_attempt(event.attempt);
  SetProgress(event.progress, proto.mutable_progress());
  proto.set_message(event.message);
  return proto;
}

v1::LogLine ToProto(const LogRecord& line) {
  v1::LogLine proto;
  SetTime(line.time, proto.mutable_time());
  proto.set_attempt(line.attempt);
  proto.set_text(line.text);
  return proto;
}

v1::Artifact ToProto(const ArtifactRecord& artifact) {
  v1::Artifact proto;
  proto.set_name(absl::StrCat("artifacts/", artifact.id));
  proto.set_digest(artifact.digest);
  proto.set_size_bytes(artifact.bytes);
  proto.set_scheme(artifact.scheme);
  proto.set_recipe(artifact.recipe);
  proto.set_kv_format(artifact.kv_format);
  v1::Quality* quality = proto.mutable_quality();
  const auto figure = [&](const char* key, auto set) {
    const auto found = artifact.quality.find(key);
    if (found != artifact.quality.end() && found->is_number()) set(found->get<double>());
  };
  figure("bits_per_weight", [&](double v) { quality->set_bits_per_weight(v); });
  figure("total_bits_per_weight", [&](double v) { quality->set_total_bits_per_weight(v); });
  figure("perplexity", [&](double v) { quality->set_perplexity(v); });
  figure("perplexity_ratio", [&](double v) { quality->set_perplexity_ratio(v); });
  figure("kl", [&](double v) { quality->set_kl(v); });
  figure("same_top", [&](double v) { quality->set_same_top(v); });
  proto.set_job(absl::StrCat("jobs/", artifact.job));
  proto.set_source(artifact.source);
  proto.set_source_digest(artifact.source_digest);
  SetTime(artifact.create_time, proto.mutable_create_time());
  return proto;
}

}  // namespace nibble
