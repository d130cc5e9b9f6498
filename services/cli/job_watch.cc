// SPDX-License-Identifier: Apache-2.0
#include "services/cli/job_watch.h"

#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "services/cli/exit_codes.h"
#include "services/cli/json_output.h"
#include "services/cli/progress_bar.h"

namespace nibble {
namespace {

constexpr std::chrono::milliseconds kReconnect{500};
constexpr std::chrono::seconds kPatience{60};  // without a single event

void ShowEvent(const v1::JobEvent& event, ProgressBar& bar) {
  const v1::Progress& progress = event.progress();
  if (event.kind() == v1::JobEvent::ATTEMPT_ENDED) {
    bar.Clear();
    std::fprintf(stderr, "attempt %lld ended: %s\n", static_cast<long long>(event.attempt()),
                 event.message().c_str());
    return;
  }
  const bool waits = event.state() == v1::Job::QUEUED;
  const std::string& pause =
      event.kind() == v1::JobEvent::STATE_CHANGED ? event.message() : event.job().pause_reason();
  std::string note = progress.message();
  if (waits) note = pause.empty() ? "waiting for a worker" : "paused: " + pause;
  const std::optional<double> eta =
      progress.has_eta_seconds() ? std::optional<double>(progress.eta_seconds()) : std::nullopt;
  bar.Show(waits || progress.phase().empty() ? "queued" : progress.phase(), progress.fraction(),
           eta, note);
}

bool IsEnd(v1::Job::State state) {
  return state == v1::Job::SUCCEEDED || state == v1::Job::FAILED || state == v1::Job::CANCELLED;
}

}  // namespace

absl::StatusOr<v1::Job> WatchJobToEnd(const Client& client, const std::string& name,
                                      WatchOutput output) {
  const auto stub = v1::QuantizationService::NewStub(client.channel());
  ProgressBar bar(output != WatchOutput::kProgress);
  v1::WatchJobRequest request;
  request.set_name(name);
  auto heard = std::chrono::steady_clock::now();
  for (;;) {
    grpc::ClientContext context;
    client.Prepare(&context);
    const auto reader = stub->WatchJob(&context, request);
    v1::JobEvent event;
    std::optional<v1::Job> ended;
    while (reader->Read(&event)) {
      heard = std::chrono::steady_clock::now();
      request.set_after_sequence(event.sequence());
      if (output == WatchOutput::kJsonLines) {
        PrintJson(ToJson(event), /*compact=*/true);
        std::fflush(stdout);
      }
      ShowEvent(event, bar);
      if (event.has_job() && IsEnd(event.job().state())) ended = event.job();
    }
    const grpc::Status status = reader->Finish();
    if (status.ok() && ended.has_value()) return *ended;
    const bool may_pass = status.ok() || status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                          status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED;
    if (!may_pass || std::chrono::steady_clock::now() - heard > kPatience) {
      return client.Explain(status);
    }
    std::this_thread::sleep_for(kReconnect);
  }
}

int JobExitCode(const v1::Job& job) {
  switch (job.state()) {
    case v1::Job::SUCCEEDED:
      return kExitOk;
    case v1::Job::CANCELLED:
      return kExitCancelled;
    default:
      return job.reason() == v1::Job::GATE_FAILED ? kExitGateFailed : kExitFailure;
  }
}

int PrintJobEnd(const Client& client, const v1::Job& job) {
  if (job.state() == v1::Job::CANCELLED) {
    std::printf("%s was cancelled\n", job.name().c_str());
    return JobExitCode(job);
  }
  if (job.state() != v1::Job::SUCCEEDED) {
    std::printf("%s failed (%s): %s\n", job.name().c_str(),
                v1::Job::Reason_Name(job.reason()).c_str(), job.message().c_str());
    return JobExitCode(job);
  }
  std::printf("%s succeeded: %s\n", job.name().c_str(), job.artifact().c_str());
  std::printf("  digest            %s\n", job.artifact_digest().c_str());
  const auto stub = v1::QuantizationService::NewStub(client.channel());
  v1::GetArtifactRequest request;
  request.set_name(job.artifact());
  grpc::ClientContext context;
  client.Prepare(&context);
  v1::Artifact artifact;
  if (!stub->GetArtifact(&context, request, &artifact).ok()) return JobExitCode(job);
  const v1::Quality& quality = artifact.quality();
  std::printf("  size              %s\n", FormatBytes(artifact.size_bytes()).c_str());
  const auto figure = [](bool set, const char* label, double value) {
    if (set) std::printf("  %-17s %.5g\n", label, value);
  };
  figure(quality.has_bits_per_weight(), "bits per weight", quality.bits_per_weight());
  figure(quality.has_perplexity(), "perplexity", quality.perplexity());
  figure(quality.has_perplexity_ratio(), "perplexity ratio", quality.perplexity_ratio());
  figure(quality.has_kl(), "KL, nats/token", quality.kl());
  figure(quality.has_same_top(), "same top token", quality.same_top());
  return JobExitCode(job);
}

}  // namespace nibble
