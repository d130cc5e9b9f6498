// SPDX-License-Identifier: Apache-2.0
// QuantizationService as a client sees it, over loopback, with worker processes that run the real
// pipeline on a tiny model.
#include "services/quantization/service.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/artifact/manifest.h"
#include "engine/artifact/sha256.h"
#include "kernels/backend.h"
#include "kernels/check.h"
#include "nibble/v1/quantization.grpc.pb.h"
#include "services/common/server.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Stub = v1::QuantizationService::Stub;

constexpr int kLayers = 3;
constexpr int kDeepLayers = 12;
constexpr char kToken[] = "secret";

class ServiceTest : public ::testing::Test {
 protected:
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
    EXPECT_THAT(ListedArtifacts(), Contains(job.artifact()));
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

TEST_F(ServiceTest, AnUploadedModelBecomesAnArtifactThatCanBeFetched) {
  StartServer(1);
  const auto upload = [&](v1::Upload::Kind kind, const std::string& id,
                          const std::vector<std::string>& paths) {
    v1::CreateUploadRequest create;
    create.set_kind(kind);
    create.set_resource_id(id);
    for (const std::string& path : paths) {
      v1::UploadFile* file = create.add_files();
      const std::string bytes = ReadFile(path);
      file->set_name(std::filesystem::path(path).filename());
      file->set_size_bytes(static_cast<int64_t>(bytes.size()));
      file->set_sha256(Sha256Hex(bytes));
    }
    v1::Upload made;
    ASSERT_TRUE(Call(&Stub::CreateUpload, create, &made).ok());
    // The first stream breaks off in the middle of the first file.
    const auto send = [&](bool all) {
      grpc::ClientContext context;
      v1::Upload response;
      const auto writer = stub_->WriteUpload(&context, &response);
      for (size_t i = 0; i < paths.size(); ++i) {
        const std::string bytes = ReadFile(paths[i]);
        v1::WriteUploadRequest message;
        message.set_name(made.name());
        message.set_file(made.files(static_cast<int>(i)).name());
        int64_t offset = made.files(static_cast<int>(i)).synced_bytes();
        message.set_offset(offset);
        message.set_data(bytes.substr(static_cast<size_t>(offset), all ? std::string::npos : 5));
        writer->Write(message);
        if (!all) break;
      }
      writer->WritesDone();
      ASSERT_TRUE(writer->Finish().ok());
    };
    send(false);
    v1::GetUploadRequest get;
    get.set_name(made.name());
    ASSERT_TRUE(Call(&Stub::GetUpload, get, &made).ok());
    EXPECT_EQ(made.files(0).synced_bytes(), 5);
    send(true);
    v1::FinishUploadRequest finish;
    finish.set_name(made.name());
    v1::FinishUploadResponse finished;
    const grpc::Status status = Call(&Stub::FinishUpload, finish, &finished);
    ASSERT_TRUE(status.ok()) << status.error_message();
  };
  const std::string tiny = models_.File("tiny");
  upload(v1::Upload::MODEL, "tiny",
         {tiny + "/config.json", tiny + "/model.safetensors", tiny + "/tokenizer.json",
          tiny + "/tokenizer_config.json"});
  upload(v1::Upload::CALIBRATION_SET, "text", {models_.File("calibration.jsonl")});

  v1::CreateJobRequest request = Request("first");
  request.mutable_spec()->set_model("models/tiny");
  request.mutable_spec()->mutable_calibration()->set_calibration_set("calibrationSets/text");
  const std::string name = Create(request);
  v1::DeleteModelRequest remove;
  remove.set_name("models/tiny");
  google::protobuf::Empty empty;
  EXPECT_EQ(Call(&Stub::DeleteModel, remove, &empty).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION)
      << "a job uses it";
  Watch(name);
  const v1::Job job = Get(name);
  ASSERT_EQ(job.state(), v1::Job::SUCCEEDED) << job.message();
  EXPECT_EQ(job.artifact(), "artifacts/first");

  v1::GetArtifactRequest get;
  get.set_name("artifacts/first");
  v1::Artifact artifact;
  ASSERT_TRUE(Call(&Stub::GetArtifact, get, &artifact).ok());
  EXPECT_EQ(artifact.digest(), job.artifact_digest());
  EXPECT_EQ(artifact.source(), "models/tiny");
  EXPECT_GT(artifact.quality().bits_per_weight(), 4.0);
  EXPECT_GT(artifact.quality().kl(), 0.0);
  v1::GetJobReportRequest report_request;
  report_request.set_name(name);
  v1::JobReport report;
  ASSERT_TRUE(Call(&Stub::GetJobReport, report_request, &report).ok());
  EXPECT_THAT(report.json(), HasSubstr("bits_per_weight"));
  EXPECT_THAT(report.html(), HasSubstr("<html"));

  v1::DownloadArtifactRequest download;
  download.set_name("artifacts/first");
  grpc::ClientContext context;
  const auto reader = stub_->DownloadArtifact(&context, download);
  std::map<std::string, std::string> files;
  v1::DownloadArtifactResponse chunk;
  while (reader->Read(&chunk)) {
    ASSERT_EQ(chunk.offset(), static_cast<int64_t>(files[chunk.file()].size()));
    files[chunk.file()] += chunk.data();
  }
  ASSERT_TRUE(reader->Finish().ok());
  ASSERT_EQ(static_cast<int>(files.size()), artifact.files_size());
  const std::string directory = server_->ResolveArtifact("artifacts/first")->directory;
  for (const v1::UploadFile& file : artifact.files()) {
    EXPECT_EQ(files[file.name()], ReadFile(directory + "/" + file.name())) << file.name();
  }
  EXPECT_TRUE(Call(&Stub::DeleteModel, remove, &empty).ok()) << "the job has ended";
}

TEST_F(ServiceTest, WatchingTellsTheWholeStoryAndEnds) {
  StartServer(1);
  const std::string name = Create(Request());
  const std::vector<v1::JobEvent> events = Watch(name);
  ASSERT_GE(events.size(), 6u);
  EXPECT_EQ(events.front().kind(), v1::JobEvent::SNAPSHOT);
  EXPECT_EQ(events.front().job().name(), name);
  for (size_t i = 2; i < events.size(); ++i) {
    EXPECT_GT(events[i].sequence(), events[i - 1].sequence());
  }
  EXPECT_EQ(BlocksDone(events), EveryBlockOnce(kLayers));
  EXPECT_EQ(events.back().kind(), v1::JobEvent::STATE_CHANGED);
  EXPECT_EQ(events.back().state(), v1::Job::SUCCEEDED);
  EXPECT_EQ(events.back().job().artifact(), Get(name).artifact());
  // Watching an ended job ends too, with the same end.
  const std::vector<v1::JobEvent> again = Watch(name);
  EXPECT_EQ(again.back().sequence(), events.back().sequence());
}

TEST_F(ServiceTest, TheSameRequestMakesOneJob) {
  StartServer(0);
  v1::CreateJobRequest request = Request();
  request.set_request_id("r-1");
  const std::string name = Create(request);
  EXPECT_EQ(Create(request), name);
  request.mutable_spec()->set_scheme("int8");
  v1::Job job;
  EXPECT_EQ(Call(&Stub::CreateJob, request, &job).error_code(), grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(ServiceTest, WrongSpecsAreRefusedWithFieldValueAndRange) {
  StartServer(0);
  const auto refused = [&](const std::function<void(v1::JobSpec&)>& change, const char* field,
                           const char* value) {
    v1::CreateJobRequest request = Request();
    change(*request.mutable_spec());
    v1::Job job;
    const grpc::Status status = Call(&Stub::CreateJob, request, &job);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << field;
    EXPECT_THAT(status.error_message(), HasSubstr(field));
    EXPECT_THAT(status.error_message(), HasSubstr(value));
  };
  refused([](v1::JobSpec& s) { s.set_recipe("qptq"); }, "recipe", "qptq");
  refused([](v1::JobSpec& s) { s.set_scheme("int5"); }, "scheme", "int5");
  refused([](v1::JobSpec& s) { s.set_kv_format("int3"); }, "kv", "int3");
  refused([](v1::JobSpec& s) { s.set_calibration_samples(5000); }, "calibration_samples", "5000");
  refused([](v1::JobSpec& s) { s.set_calibration_length(-1); }, "calibration_length", "-1");
  refused([](v1::JobSpec& s) { s.set_model_path("../tiny"); }, "model_path", "../tiny");
  refused([](v1::JobSpec& s) { s.set_model("tiny"); }, "spec.model", "tiny");
  refused([](v1::JobSpec& s) { s.set_artifact_id("a/b"); }, "artifact_id", "a/b");
  refused([](v1::JobSpec& s) { s.clear_calibration(); }, "calibration", "gptq");
  refused([](v1::JobSpec& s) { s.mutable_gate()->set_max_kl(-2); }, "max_kl", "-2");
  refused(
      [](v1::JobSpec& s) {
        s.clear_evaluation();
        s.mutable_gate()->set_max_kl(1);
      },
      "gate", "evaluation");
  refused([](v1::JobSpec& s) { s.clear_method(); }, "recipe", "custom_recipe");
  v1::CreateJobRequest request = Request();
  request.mutable_spec()->set_model("models/absent");
  v1::Job job;
  EXPECT_EQ(Call(&Stub::CreateJob, request, &job).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServiceTest, EveryListedRecipeAndSchemeIsTaken) {
  StartServer(0);
  v1::ListRecipesResponse recipes;
  ASSERT_TRUE(Call(&Stub::ListRecipes, v1::ListRecipesRequest(), &recipes).ok());
  EXPECT_GE(recipes.recipes_size(), 5);
  for (const v1::RecipeInfo& info : recipes.recipes()) {
    v1::CreateJobRequest request = Request();
    request.mutable_spec()->set_recipe(info.id());
    if (info.id().find("smooth") == 0) request.mutable_spec()->set_scheme("w8a8");
    Create(request);
    *request.mutable_spec()->mutable_custom_recipe() = info.recipe();
    Create(request);
  }
  v1::ListSchemesResponse schemes;
  ASSERT_TRUE(Call(&Stub::ListSchemes, v1::ListSchemesRequest(), &schemes).ok());
  for (const v1::SchemeInfo& info : schemes.schemes()) {
    if (info.group() == 0) continue;
    v1::CreateJobRequest request = Request();
    request.mutable_spec()->set_recipe("rtn");
    request.mutable_spec()->set_scheme(info.id());
    Create(request);
  }
}

TEST_F(ServiceTest, AFailedGateFailsTheJobAndKeepsTheReport) {
  StartServer(1);
  v1::CreateJobRequest request = Request();
  request.mutable_spec()->mutable_gate()->set_max_kl(1e-9);
  const std::string name = Create(request);
  EXPECT_EQ(Watch(name).back().state(), v1::Job::FAILED);
  EXPECT_EQ(Get(name).reason(), v1::Job::GATE_FAILED);
  v1::GetJobReportRequest report_request;
  report_request.set_name(name);
  v1::JobReport report;
  ASSERT_TRUE(Call(&Stub::GetJobReport, report_request, &report).ok());
  EXPECT_THAT(report.json(), HasSubstr("\"passed\":false"));
  v1::ListArtifactsResponse artifacts;
  ASSERT_TRUE(Call(&Stub::ListArtifacts, v1::ListArtifactsRequest(), &artifacts).ok());
  EXPECT_EQ(artifacts.artifacts_size(), 0);
}

TEST_F(ServiceTest, AQueuedJobIsCancelledAtOnceAndListsArePaged) {
  StartServer(0);
  std::vector<std::string> names;
  for (int i = 0; i < 3; ++i) names.push_back(Create(Request()));
  v1::CancelJobRequest cancel;
  cancel.set_name(names[1]);
  v1::Job job;
  ASSERT_TRUE(Call(&Stub::CancelJob, cancel, &job).ok());
  EXPECT_EQ(job.state(), v1::Job::CANCELLED);

  std::vector<std::string> listed;
  v1::ListJobsRequest list;
  list.set_page_size(2);
  do {
    v1::ListJobsResponse page;
    ASSERT_TRUE(Call(&Stub::ListJobs, list, &page).ok());
    for (const v1::Job& entry : page.jobs()) listed.push_back(entry.name());
    list.set_page_token(page.next_page_token());
  } while (!list.page_token().empty());
  EXPECT_THAT(listed, ElementsAre(names[2], names[1], names[0]));

  v1::ListJobsResponse page;
  list.set_page_token("");
  ASSERT_TRUE(Call(&Stub::ListJobs, list, &page).ok());
  list.set_page_token(page.next_page_token());
  list.add_states(v1::Job::QUEUED);
  EXPECT_EQ(Call(&Stub::ListJobs, list, &page).error_code(), grpc::StatusCode::INVALID_ARGUMENT)
      << "a token of another filter";
}

TEST_F(ServiceTest, APinnedArtifactIsNotDeleted) {
  StartServer(1);
  UndisturbedDigest();
  std::optional<LocalArtifact> pinned = *server_->ResolveArtifact("artifacts/undisturbed");
  v1::DeleteArtifactRequest remove;
  remove.set_name("artifacts/undisturbed");
  google::protobuf::Empty empty;
  EXPECT_EQ(Call(&Stub::DeleteArtifact, remove, &empty).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_FALSE(ReadFile(pinned->directory + "/config.json").empty());
  const std::string directory = pinned->directory;
  pinned.reset();
  EXPECT_TRUE(Call(&Stub::DeleteArtifact, remove, &empty).ok());
  EXPECT_FALSE(std::filesystem::exists(directory));
  EXPECT_EQ(Call(&Stub::DeleteArtifact, remove, &empty).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServiceTest, CallersSeeTheirTenantsThingsAndNeedRoles) {
  const std::string tokens = directory_.File("tokens");
  WriteFile(tokens, absl::StrCat(Sha256Hex("a"), " alice lab quantize\n",  //
                                 Sha256Hex("b"), " bob works quantize\n",  //
                                 Sha256Hex("g"), " greg lab generate\n",   //
                                 Sha256Hex(kToken), " root lab admin\n"));
  StartServer(0, {}, tokens);
  v1::Job job;
  EXPECT_EQ(Call(&Stub::CreateJob, Request(), &job).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Call(&Stub::CreateJob, Request(), &job, "g").error_code(),
            grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(Call(&Stub::CreateJob, Request(), &job, "a").error_code(),
            grpc::StatusCode::PERMISSION_DENIED)
      << "naming a source by path needs admin";
  ASSERT_TRUE(Call(&Stub::CreateJob, Request(), &job, kToken).ok());
  v1::GetJobRequest get;
  get.set_name(job.name());
  EXPECT_TRUE(Call(&Stub::GetJob, get, &job, "a").ok()) << "the same tenant's";
  EXPECT_EQ(Call(&Stub::GetJob, get, &job, "b").error_code(), grpc::StatusCode::NOT_FOUND);
  v1::DeleteJobRequest remove;
  remove.set_name(get.name());
  google::protobuf::Empty empty;
  EXPECT_EQ(Call(&Stub::DeleteJob, remove, &empty, "a").error_code(),
            grpc::StatusCode::PERMISSION_DENIED);
}

TEST_F(ServiceTest, ADirectoryHasOneServer) {
  StartServer(0);
  QuantizationOptions options;
  options.data_dir = directory_.File("data");
  options.supervisor.workers = 0;
  EXPECT_TRUE(absl::IsFailedPrecondition(
      QuantizationServer::Create(options, *authorizer_, *metrics_).status()));
}

// ---- interruptions ----
//
// A killed worker loses at most the block it was at; what is committed is never computed again. So
// blocks computed <= blocks + kills, and the events, one for each committed block, name each block
// once.

TEST_F(ServiceTest, KilledAfterEveryBlockItPublishesTheSameDigest) {
  StartServer(1);
  const std::string digest = UndisturbedDigest();
  DeleteArtifact("undisturbed");
  KillAt(std::vector<std::string>(kLayers, "block 0"));
  const std::string name = Create(Request("killed"));
  const std::vector<v1::JobEvent> events = Watch(name);
  ExpectPublished(name, digest);
  EXPECT_EQ(CountKills(events), kLayers);
  EXPECT_EQ(BlocksDone(events), EveryBlockOnce(kLayers));
}

TEST_F(ServiceTest, KilledAtTenMomentsOfItsLifeItPublishesTheSameDigest) {
  StartServer(1);
  const std::string digest = UndisturbedDigest();
  DeleteArtifact("undisturbed");
  const int steps = StepsTo(Story(), "synced");
  std::mt19937 random(7);
  for (int round = 0; round < 10; ++round) {
    const int moment = std::uniform_int_distribution<int>(0, steps)(random);
    const std::string id = absl::StrCat("r", round);
    KillAt({absl::StrCat("attempt ", moment)});
    const std::string name = Create(Request(id));
    const std::vector<v1::JobEvent> events = Watch(name);
    SCOPED_TRACE(absl::StrCat("killed at step ", moment, " of ", steps));
    ExpectPublished(name, digest);
    EXPECT_EQ(Get(name).attempts(), 2) << "it was killed once";
    EXPECT_EQ(BlocksDone(events), EveryBlockOnce(kLayers));
    DeleteArtifact(id);
  }
}

TEST_F(ServiceTest, OneJobKilledTenTimesPublishesTheSameDigest) {
  StartServer(1);
  const auto request = [&](const std::string& id) {
    v1::CreateJobRequest made = Request(id);
    made.mutable_spec()->set_model_path("deep");
    return made;
  };
  const std::string undisturbed = Create(request("undisturbed"));
  Watch(undisturbed);
  const std::string digest = Get(undisturbed).artifact_digest();
  ExpectPublished(undisturbed, digest);
  DeleteArtifact("undisturbed");
  // By turns before an attempt's first block, and up to a block's length after it: one attempt in
  // two commits one or two of the twelve blocks.
  const auto story = Story();
  const int first_block = StepsTo(story, "block");
  const int a_block = StepsTo(story, "block", 2) - first_block;
  ASSERT_LT(a_block, first_block);
  std::mt19937 random(7);
  std::vector<std::string> moments;
  for (int kill = 0; kill < 10; kill += 2) {
    moments.push_back(absl::StrCat(
        "attempt ", std::uniform_int_distribution<int>(0, first_block - a_block)(random)));
    moments.push_back(
        absl::StrCat("block ", std::uniform_int_distribution<int>(0, a_block)(random)));
  }
  KillAt(moments);
  const std::string name = Create(request("killed"));
  const std::vector<v1::JobEvent> events = Watch(name);
  ExpectPublished(name, digest);
  EXPECT_EQ(CountKills(events), 10);
  EXPECT_EQ(BlocksDone(events), EveryBlockOnce(kDeepLayers));
}

TEST_F(ServiceTest, KilledDuringEvaluationItGoesOnWithoutComputingABlockAgain) {
  StartServer(1);
  const std::string digest = UndisturbedDigest();
  DeleteArtifact("undisturbed");
  const auto story = Story();
  const int evaluation = StepsTo(story, "publishing") - StepsTo(story, "evaluate");
  KillAt({"evaluate 0", absl::StrCat("evaluate ", evaluation / 2)});
  const std::string name = Create(Request("killed"));
  const std::vector<v1::JobEvent> events = Watch(name);
  ExpectPublished(name, digest);
  EXPECT_EQ(CountKills(events), 2);
  EXPECT_EQ(BlocksDone(events), EveryBlockOnce(kLayers));
}

constexpr const char* kMomentsOfPublishing[] = {"publishing", "rename", "renamed", "synced"};

TEST_F(ServiceTest, KilledDuringPublishItIsPublishedByTheService) {
  StartServer(1);
  const std::string digest = UndisturbedDigest();
  DeleteArtifact("undisturbed");
  for (const std::string moment : kMomentsOfPublishing) {
    SCOPED_TRACE(moment);
    KillAt({moment + " 0"});
    const std::string name = Create(Request(moment));
    const std::vector<v1::JobEvent> events = Watch(name);
    ExpectPublished(name, digest);
    EXPECT_EQ(Get(name).attempts(), 2) << "the worker was killed and the service took over";
    EXPECT_EQ(BlocksDone(events), EveryBlockOnce(kLayers));
    DeleteArtifact(moment);
  }
}

TEST_F(ServiceTest, KilledDuringPublishNothingIsListedUntilTheNextStartCompletesIt) {
  recover_ = std::chrono::hours(1);
  StartServer(1);
  const std::string digest = UndisturbedDigest();
  DeleteArtifact("undisturbed");
  for (const std::string moment : kMomentsOfPublishing) {
    SCOPED_TRACE(moment);
    KillAt({moment + " 0"});
    std::vector<pid_t> before;
    while ((before = server_->worker_pids()).empty()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    const std::string name = Create(Request(moment));
    // Until the worker is dead, or something else went wrong.
    while (server_->worker_pids() == before && Get(name).state() <= v1::Job::PUBLISHING) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_EQ(Get(name).state(), v1::Job::PUBLISHING);
    EXPECT_EQ(Get(name).artifact(), "");
    EXPECT_THAT(ListedArtifacts(), IsEmpty());
    v1::GetArtifactRequest get;
    get.set_name("artifacts/" + moment);
    v1::Artifact artifact;
    EXPECT_EQ(Call(&Stub::GetArtifact, get, &artifact).error_code(), grpc::StatusCode::NOT_FOUND);
    EXPECT_FALSE(server_->ResolveArtifact("artifacts/" + moment).ok());
    StopServer();
    StartServer(1);
    ExpectPublished(name, digest);
    EXPECT_THAT(ListedArtifacts(), ElementsAre("artifacts/" + moment));
    DeleteArtifact(moment);
  }
}

TEST_F(ServiceTest, GoingOnUnderAnotherTierItStartsOverAndSaysSo) {
  if ((*MakeCpuBackend({1, ""}))->Tier() == "cpu/scalar") return;  // there is no other tier
  StartServer(1);
  const std::string digest = UndisturbedDigest();
  DeleteArtifact("undisturbed");
  StopServer();
  backoff_ = std::chrono::hours(1);
  StartServer(1, {"--tier", "scalar"});
  KillAt({"block 0"});
  const std::string name = Create(Request("moved"));
  while (Get(name).attempts() == 0 || Get(name).state() != v1::Job::QUEUED) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  StopServer();
  backoff_ = std::chrono::milliseconds(10);
  StartServer(1);
  const std::vector<v1::JobEvent> events = Watch(name);
  ExpectPublished(name, digest);
  EXPECT_THAT(BlocksDone(events), ElementsAre(1, 1, 2, 3));
  v1::ListJobLogsRequest list;
  list.set_name(name);
  v1::ListJobLogsResponse logs;
  ASSERT_TRUE(Call(&Stub::ListJobLogs, list, &logs).ok());
  EXPECT_THAT(logs.DebugString(), HasSubstr("starting over: the finished blocks were computed on "
                                            "cpu/scalar"));
}

TEST_F(ServiceTest, ARestartOfTheServerLosesNothing) {
  StartServer(1);
  const std::string digest = UndisturbedDigest();
  StopServer();
  StartServer(0);
  const std::string name = Create(Request("across"));
  StopServer();
  StartServer(1);
  Watch(name);
  EXPECT_EQ(Get(name).artifact_digest(), digest);
  v1::ListArtifactsResponse artifacts;
  ASSERT_TRUE(Call(&Stub::ListArtifacts, v1::ListArtifactsRequest(), &artifacts).ok());
  EXPECT_EQ(artifacts.artifacts_size(), 2);
}

TEST_F(ServiceTest, ADrainingServerTakesNothingNew) {
  StartServer(0);
  const std::string name = Create(Request());
  server_->Drain();
  v1::Job job;
  EXPECT_EQ(Call(&Stub::CreateJob, Request(), &job).error_code(), grpc::StatusCode::UNAVAILABLE);
  v1::WatchJobRequest watch;
  watch.set_name(name);
  grpc::ClientContext context;
  const auto reader = stub_->WatchJob(&context, watch);
  v1::JobEvent event;
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace nibble
