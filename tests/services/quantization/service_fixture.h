// SPDX-License-Identifier: Apache-2.0
// QuantizationService as a client sees it, over loopback, with worker processes that run the real
// pipeline on a tiny model.
#pragma once

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/artifact/manifest.h"
#include "kernels/check.h"
#include "nibble/v1/quantization.grpc.pb.h"
#include "services/common/server.h"
#include "services/quantization/service.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace testing {

inline constexpr int kLayers = 3;
inline constexpr int kDeepLayers = 12;

class ServiceTest : public ::testing::Test {
 protected:
  using Stub = v1::QuantizationService::Stub;

  ServiceTest() {
    testing::TinyModelOptions tiny;
    tiny.layers = kLayers;
    testing::TinyModel model(models_.File("tiny"), tiny);
    tiny.layers = kDeepLayers;
    testing::TinyModel deep(models_.File("deep"), tiny);
    testing::TinyModel::WriteIds(models_.File("calibration.jsonl"), 8, 64, 1);
    testing::TinyModel::WriteIds(models_.File("heldout.jsonl"), 4, 64, 2);
  }
  ~ServiceTest() override { StopServer(); }

  // `workers` processes with extra arguments; with a tokens file if `tokens` is not empty.
  void StartServer(int workers, const std::vector<std::string>& more = {},
                   const std::string& tokens = "") {
    metrics_ = std::make_unique<Metrics>();
    health_ = std::make_unique<Health>();
    authorizer_ = *Authorizer::Make(tokens);
    QuantizationOptions options;
    options.data_dir = directory_.File("data");
    options.model_root = models_.path();
    options.supervisor.workers = workers;
    options.supervisor.first_backoff = backoff_;
    options.supervisor.longest_backoff = std::max(backoff_, std::chrono::milliseconds(50));
    options.supervisor.command = {
        NIBBLE_TEST_WORKER, "--real", "--data-dir", options.data_dir, "--model-root",
        models_.path(),     "--plan", PlanPath(),   "--story",        StoryPath()};
    options.supervisor.command.insert(options.supervisor.command.end(), more.begin(), more.end());
    options.housekeeper.look = std::chrono::milliseconds(5);
    options.housekeeper.recover = recover_;
    absl::StatusOr<std::unique_ptr<QuantizationServer>> server =
        QuantizationServer::Create(options, *authorizer_, *metrics_);
    NIBBLE_CHECK(server.ok());
    server_ = *std::move(server);
    grpc::Service* const services[] = {server_->service()};
    listener_ = *Listener::Start(Settings(), "127.0.0.1:0", services, *health_, *metrics_);
    stub_ = v1::QuantizationService::NewStub(
        grpc::CreateChannel(listener_->address(), grpc::InsecureChannelCredentials()));
  }
  void StopServer() {
    if (server_ == nullptr) return;
    server_->Drain();
    listener_.reset();
    server_.reset();
  }

  template <typename Request, typename Response>
  grpc::Status Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response, const char* token = nullptr) {
    grpc::ClientContext context;
    if (token != nullptr) context.AddMetadata("authorization", absl::StrCat("Bearer ", token));
    return (stub_.get()->*method)(&context, request, response);
  }

  v1::CreateJobRequest Request(const std::string& artifact = "") {
    v1::CreateJobRequest request;
    v1::JobSpec& spec = *request.mutable_spec();
    spec.set_model_path("tiny");
    spec.set_recipe("gptq");
    spec.set_scheme("int4-g32");
    spec.mutable_calibration()->set_path("calibration.jsonl");
    spec.set_calibration_samples(4);
    spec.set_calibration_length(32);
    spec.mutable_evaluation()->set_path("heldout.jsonl");
    spec.set_artifact_id(artifact);
    return request;
  }
  std::string Create(const v1::CreateJobRequest& request) {
    v1::Job job;
    const grpc::Status status = Call(&Stub::CreateJob, request, &job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job.name();
  }
  v1::Job Get(const std::string& name) {
    v1::GetJobRequest request;
    request.set_name(name);
    v1::Job job;
    EXPECT_TRUE(Call(&Stub::GetJob, request, &job).ok());
    return job;
  }
  // The events of a job to its end; `on_event` hears each.
  std::vector<v1::JobEvent> Watch(
      const std::string& name, const std::function<void(const v1::JobEvent&)>& on_event = nullptr) {
    v1::WatchJobRequest request;
    request.set_name(name);
    request.set_after_sequence(0);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    const auto reader = stub_->WatchJob(&context, request);
    std::vector<v1::JobEvent> events;
    v1::JobEvent event;
    while (reader->Read(&event)) {
      events.push_back(event);
      if (on_event) on_event(event);
    }
    const grpc::Status status = reader->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    return events;
  }
  // As the BLOCK_DONE events tell: how many blocks were done after each.
  static std::vector<int> BlocksDone(const std::vector<v1::JobEvent>& events) {
    std::vector<int> blocks;
    for (const v1::JobEvent& event : events) {
      if (event.kind() == v1::JobEvent::BLOCK_DONE)
        blocks.push_back(event.progress().blocks_done());
    }
    return blocks;
  }
  // 1..layers: each block was computed, none of them twice.
  static std::vector<int> EveryBlockOnce(int layers) {
    std::vector<int> blocks(static_cast<size_t>(layers));
    std::iota(blocks.begin(), blocks.end(), 1);
    return blocks;
  }
  // As the ATTEMPT_ENDED events tell; a worker that dies while it publishes leaves none.
  static int CountKills(const std::vector<v1::JobEvent>& events) {
    int count = 0;
    for (const v1::JobEvent& event : events) {
      count += event.kind() == v1::JobEvent::ATTEMPT_ENDED &&
               event.message().find("killed by signal 9") != std::string::npos;
    }
    return count;
  }

  // Moments (see test_worker.cc) at which the coming attempts are killed, one each.
  std::string PlanPath() const { return directory_.File("plan"); }
  std::string StoryPath() const { return directory_.File("story"); }
  void KillAt(const std::vector<std::string>& moments) {
    WriteFile(PlanPath(), absl::StrJoin(moments, "\n"));
  }
  // The marks that the attempts since the last call passed, and after how many of their steps.
  std::vector<std::pair<std::string, int>> Story() {
    std::istringstream story(ReadFile(StoryPath()));
    std::filesystem::remove(StoryPath());
    std::vector<std::pair<std::string, int>> marks;
    std::string mark;
    int steps = 0;
    while (story >> mark >> steps) marks.emplace_back(mark, steps);
    return marks;
  }
  static int StepsTo(const std::vector<std::pair<std::string, int>>& story, const std::string& mark,
                     int time = 1) {
    for (const auto& [passed, steps] : story) {
      if (passed == mark && --time == 0) return steps;
    }
    ADD_FAILURE() << mark << " was not passed";
    return 0;
  }

  std::vector<std::string> ListedArtifacts() {
    v1::ListArtifactsResponse page;
    EXPECT_TRUE(Call(&Stub::ListArtifacts, v1::ListArtifactsRequest(), &page).ok());
    std::vector<std::string> names;
    for (const v1::Artifact& artifact : page.artifacts()) names.push_back(artifact.name());
    return names;
  }
  // That the job succeeded with an artifact of that digest, every file of which is whole.
  void ExpectPublished(const std::string& name, const std::string& digest) {
    const v1::Job job = Get(name);
    ASSERT_EQ(job.state(), v1::Job::SUCCEEDED) << job.message();
    EXPECT_EQ(job.artifact_digest(), digest);
    EXPECT_THAT(ListedArtifacts(), ::testing::Contains(job.artifact()));
    const absl::StatusOr<LocalArtifact> artifact = server_->ResolveArtifact(job.artifact());
    ASSERT_TRUE(artifact.ok()) << artifact.status();
    const absl::StatusOr<std::string> verified = VerifyArtifact(artifact->directory);
    ASSERT_TRUE(verified.ok()) << verified.status();
    EXPECT_EQ(*verified, digest);
  }
  std::string UndisturbedDigest() {
    const std::string name = Create(Request("undisturbed"));
    Watch(name);
    const v1::Job job = Get(name);
    EXPECT_EQ(job.state(), v1::Job::SUCCEEDED) << job.message();
    return job.artifact_digest();
  }
  // Deletes it, so that the next job of the same contents publishes by a real rename.
  void DeleteArtifact(const std::string& id) {
    v1::DeleteArtifactRequest request;
    request.set_name(absl::StrCat("artifacts/", id));
    google::protobuf::Empty empty;
    EXPECT_TRUE(Call(&Stub::DeleteArtifact, request, &empty).ok());
  }

  TempDir directory_;
  TempDir models_;
  std::chrono::milliseconds backoff_{10};  // before a dead worker is replaced
  std::chrono::milliseconds recover_{50};  // how often publishes left half done are looked for
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<Health> health_;
  std::unique_ptr<Authorizer> authorizer_;
  std::unique_ptr<QuantizationServer> server_;
  std::unique_ptr<Listener> listener_;
  std::unique_ptr<Stub> stub_;
};
}  // namespace testing
}  // namespace nibble
