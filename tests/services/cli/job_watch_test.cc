// SPDX-License-Identifier: Apache-2.0
#include "services/cli/job_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "services/cli/exit_codes.h"
#include "tests/services/cli/fake_server.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::JobEvent Event(v1::JobEvent::Kind kind, v1::Job::State state, int64_t sequence) {
  v1::JobEvent event;
  event.set_kind(kind);
  event.set_state(state);
  event.set_sequence(sequence);
  return event;
}

v1::JobEvent Progress(const std::string& phase, double fraction, int64_t sequence) {
  v1::JobEvent event = Event(v1::JobEvent::PROGRESS, v1::Job::RUNNING, sequence);
  event.mutable_progress()->set_phase(phase);
  event.mutable_progress()->set_fraction(fraction);
  event.mutable_progress()->set_message("block 1/2");
  return event;
}

v1::JobEvent End(v1::Job::State state, int64_t sequence) {
  v1::JobEvent event = Event(v1::JobEvent::STATE_CHANGED, state, sequence);
  event.mutable_job()->set_name("jobs/a");
  event.mutable_job()->set_state(state);
  return event;
}

// Answers each WatchJob with the next of its scripts.
class ScriptedJobs : public v1::QuantizationService::Service {
 public:
  struct Script {
    std::vector<v1::JobEvent> events;
    grpc::Status end = grpc::Status::OK;
  };

  grpc::Status WatchJob(grpc::ServerContext*, const v1::WatchJobRequest* request,
                        grpc::ServerWriter<v1::JobEvent>* writer) override {
    asked.push_back(request->has_after_sequence() ? request->after_sequence() : -1);
    const Script script = scripts.at(asked.size() - 1);
    for (const v1::JobEvent& event : script.events) writer->Write(event);
    return script.end;
  }
  grpc::Status GetArtifact(grpc::ServerContext*, const v1::GetArtifactRequest*,
                           v1::Artifact* response) override {
    *response = artifact;
    return grpc::Status::OK;
  }

  std::vector<Script> scripts;
  std::vector<int64_t> asked;  // after which sequence; -1 = unset
  v1::Artifact artifact;
};

class JobWatchTest : public ::testing::Test {
 protected:
  absl::StatusOr<v1::Job> Watch(WatchOutput output) {
    ::testing::internal::CaptureStderr();
    ::testing::internal::CaptureStdout();
    absl::StatusOr<v1::Job> job = WatchJobToEnd(server_.client(), "jobs/a", output);
    stdout_ = ::testing::internal::GetCapturedStdout();
    stderr_ = ::testing::internal::GetCapturedStderr();
    return job;
  }
  int PrintEnd(const v1::Job& job) {
    ::testing::internal::CaptureStdout();
    const int code = PrintJobEnd(server_.client(), job);
    stdout_ = ::testing::internal::GetCapturedStdout();
    return code;
  }

  ScriptedJobs jobs_;
  FakeServer server_{&jobs_};
  std::string stdout_;
  std::string stderr_;
};

TEST_F(JobWatchTest, EventsBecomePlainLines) {
  const v1::JobEvent queued = Event(v1::JobEvent::SNAPSHOT, v1::Job::QUEUED, 1);
  v1::JobEvent timed = Progress("quantize", 0.5, 3);
  timed.mutable_progress()->set_eta_seconds(65);
  v1::JobEvent died = Event(v1::JobEvent::ATTEMPT_ENDED, v1::Job::RUNNING, 4);
  died.set_attempt(1);
  died.set_message("the worker was killed by signal 9");
  v1::JobEvent paused = Event(v1::JobEvent::STATE_CHANGED, v1::Job::QUEUED, 5);
  paused.set_message("no space left");
  jobs_.scripts = {
      {{queued, Progress("digest", 0.01, 2), timed, died, paused, End(v1::Job::SUCCEEDED, 6)}}};
  const absl::StatusOr<v1::Job> job = Watch(WatchOutput::kProgress);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->state(), v1::Job::SUCCEEDED);
  EXPECT_EQ(stdout_, "");
  EXPECT_THAT(stderr_, HasSubstr("queued:   0 %, waiting for a worker\n"
                                 "digest:   1 %, block 1/2\n"
                                 "quantize:  50 %, 1m 05s left, block 1/2\n"
                                 "attempt 1 ended: the worker was killed by signal 9\n"
                                 "queued:   0 %, paused: no space left\n"));
}

TEST_F(JobWatchTest, AJobThatIsPausedAlreadySaysWhy) {
  v1::JobEvent paused = Event(v1::JobEvent::SNAPSHOT, v1::Job::QUEUED, 1);
  paused.mutable_job()->set_pause_reason("no space left");
  jobs_.scripts = {{{paused, End(v1::Job::SUCCEEDED, 2)}}};
  ASSERT_TRUE(Watch(WatchOutput::kProgress).ok());
  EXPECT_THAT(stderr_, HasSubstr("queued:   0 %, paused: no space left\n"));
}

TEST_F(JobWatchTest, AScriptGetsALineOfJsonForEachEvent) {
  jobs_.scripts = {{{Progress("quantize", 0.5, 3), End(v1::Job::FAILED, 4)}}};
  ASSERT_TRUE(Watch(WatchOutput::kJsonLines).ok());
  EXPECT_EQ(stderr_, "");
  const size_t line = stdout_.find('\n');
  ASSERT_NE(line, std::string::npos);
  const auto first = nlohmann::json::parse(stdout_.substr(0, line));
  EXPECT_EQ(first.at("kind"), "PROGRESS");
  EXPECT_EQ(first.at("progress").at("phase"), "quantize");
  const auto second = nlohmann::json::parse(stdout_.substr(line + 1));
  EXPECT_EQ(second.at("job").at("state"), "FAILED");
}

TEST_F(JobWatchTest, AfterABrokenConnectionItGoesOnAfterTheLastEventItSaw) {
  jobs_.scripts = {
      {{Progress("quantize", 0.5, 7)}, {grpc::StatusCode::UNAVAILABLE, "the server is going away"}},
      {{}, grpc::Status::OK},  // an end that is none
      {{End(v1::Job::CANCELLED, 9)}}};
  const absl::StatusOr<v1::Job> job = Watch(WatchOutput::kNothing);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->state(), v1::Job::CANCELLED);
  EXPECT_THAT(jobs_.asked, ElementsAre(-1, 7, 7));
  EXPECT_EQ(stdout_ + stderr_, "");
}

TEST_F(JobWatchTest, AnErrorThatWillNotPassEndsIt) {
  jobs_.scripts = {{{}, {grpc::StatusCode::NOT_FOUND, "there is no jobs/a"}}};
  EXPECT_EQ(Watch(WatchOutput::kNothing).status(), absl::NotFoundError("there is no jobs/a"));
}

TEST_F(JobWatchTest, TheExitCodeTellsHowAJobEnded) {
  const auto code = [](v1::Job::State state, v1::Job::Reason reason) {
    v1::Job job;
    job.set_state(state);
    job.set_reason(reason);
    return JobExitCode(job);
  };
  EXPECT_EQ(code(v1::Job::SUCCEEDED, v1::Job::REASON_UNSPECIFIED), kExitOk);
  EXPECT_EQ(code(v1::Job::CANCELLED, v1::Job::REASON_UNSPECIFIED), kExitCancelled);
  EXPECT_EQ(code(v1::Job::FAILED, v1::Job::GATE_FAILED), kExitGateFailed);
  EXPECT_EQ(code(v1::Job::FAILED, v1::Job::INVALID_INPUT), kExitFailure);
  EXPECT_EQ(code(v1::Job::FAILED, v1::Job::ATTEMPTS_EXHAUSTED), kExitFailure);
}

TEST_F(JobWatchTest, AnEndIsToldWithTheFiguresThatThereAre) {
  v1::Job job = End(v1::Job::SUCCEEDED, 1).job();
  job.set_artifact("artifacts/x");
  job.set_artifact_digest("abc");
  jobs_.artifact.set_size_bytes(1'500'000);
  jobs_.artifact.mutable_quality()->set_bits_per_weight(4.25);
  EXPECT_EQ(PrintEnd(job), kExitOk);
  EXPECT_EQ(stdout_,
            "jobs/a succeeded: artifacts/x\n"
            "  digest            abc\n"
            "  size              1.5 MB\n"
            "  bits per weight   4.25\n");

  job = End(v1::Job::FAILED, 1).job();
  job.set_reason(v1::Job::GATE_FAILED);
  job.set_message("kl 0.2 > 0.1");
  EXPECT_EQ(PrintEnd(job), kExitGateFailed);
  EXPECT_EQ(stdout_, "jobs/a failed (GATE_FAILED): kl 0.2 > 0.1\n");

  EXPECT_EQ(PrintEnd(End(v1::Job::CANCELLED, 1).job()), kExitCancelled);
  EXPECT_EQ(stdout_, "jobs/a was cancelled\n");
}

}  // namespace
}  // namespace nibble
