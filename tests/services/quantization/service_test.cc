// SPDX-License-Identifier: Apache-2.0
// What callers of QuantizationService may ask and are told.
#include "services/quantization/service.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/artifact/sha256.h"
#include "tests/services/quantization/service_fixture.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kToken[] = "secret";

using ServiceTest = ServiceFixture;

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
        s.set_recipe("rtn");
        s.clear_calibration();
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
