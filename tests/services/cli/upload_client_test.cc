// SPDX-License-Identifier: Apache-2.0
// What is sent, and from where it goes on, against a server whose streams break where a test says.
#include "services/cli/upload_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/artifact/sha256.h"
#include "tests/services/cli/fake_server.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

// Keeps what it gets as the real service does: bytes count when they are in order.
class FakeUploads : public v1::QuantizationService::Service {
 public:
  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest* request,
                          v1::ListModelsResponse* response) override {
    digest_asked = request->digest();
    for (const v1::Model& model : models) *response->add_models() = model;
    return grpc::Status::OK;
  }
  grpc::Status ListCalibrationSets(grpc::ServerContext*, const v1::ListCalibrationSetsRequest*,
                                   v1::ListCalibrationSetsResponse* response) override {
    for (const v1::CalibrationSet& set : sets) *response->add_calibration_sets() = set;
    return grpc::Status::OK;
  }
  grpc::Status ListUploads(grpc::ServerContext*, const v1::ListUploadsRequest* request,
                           v1::ListUploadsResponse* response) override {
    if (others_first && request->page_token().empty()) {
      response->add_uploads()->set_name("uploads/other");
      response->set_next_page_token("second");
    } else if (unfinished) {
      *response->add_uploads() = upload;
    }
    return grpc::Status::OK;
  }
  grpc::Status CreateUpload(grpc::ServerContext*, const v1::CreateUploadRequest* request,
                            v1::Upload* response) override {
    ++created;
    upload.set_name("uploads/u");
    upload.set_kind(request->kind());
    upload.set_resource("models/drawn");
    *upload.mutable_files() = request->files();
    *response = upload;
    return grpc::Status::OK;
  }
  grpc::Status GetUpload(grpc::ServerContext*, const v1::GetUploadRequest*,
                         v1::Upload* response) override {
    *response = upload;
    return grpc::Status::OK;
  }
  grpc::Status WriteUpload(grpc::ServerContext*, grpc::ServerReader<v1::WriteUploadRequest>* reader,
                           v1::Upload* response) override {
    v1::WriteUploadRequest message;
    bool first = true;
    while (reader->Read(&message)) {
      if (std::exchange(first, false)) {
        streams.emplace_back(message.file(), message.offset());
        if (!refusal.ok()) return refusal;
      }
      for (v1::UploadFile& file : *upload.mutable_files()) {
        if (file.name() != message.file()) continue;
        if (file.synced_bytes() != message.offset()) {
          return {grpc::StatusCode::OUT_OF_RANGE, "offset"};
        }
        // The connection breaks with a part of this message taken.
        const int64_t take = std::min(until_break, static_cast<int64_t>(message.data().size()));
        received[file.name()] += message.data().substr(0, static_cast<size_t>(take));
        file.set_synced_bytes(file.synced_bytes() + take);
        until_break -= take;
        if (until_break == 0) {
          until_break = std::numeric_limits<int64_t>::max();
          return {grpc::StatusCode::UNAVAILABLE, "broken"};
        }
      }
    }
    *response = upload;
    return grpc::Status::OK;
  }
  grpc::Status FinishUpload(grpc::ServerContext*, const v1::FinishUploadRequest*,
                            v1::FinishUploadResponse*) override {
    ++finished;
    return grpc::Status::OK;
  }

  std::vector<v1::Model> models;
  std::vector<v1::CalibrationSet> sets;
  v1::Upload upload;
  bool others_first = false;  // other uploads fill the first page
  bool unfinished = false;    // whether `upload` is there before the client begins
  int64_t until_break = std::numeric_limits<int64_t>::max();  // bytes, once
  grpc::Status refusal;
  std::string digest_asked;
  int created = 0;
  int finished = 0;
  std::vector<std::pair<std::string, int64_t>> streams;  // file and offset of their first messages
  std::map<std::string, std::string> received;
};

class UploadClientTest : public ::testing::Test {
 protected:
  UploadClientTest() {
    std::filesystem::create_directory(directory_.File("model"));
    WriteFile(directory_.File("model/config.json"), "{\"a\": 1}");
    WriteFile(directory_.File("model/model.safetensors"), weights_);
    WriteFile(directory_.File("text.jsonl"), "{\"text\": \"a\"}\n");
  }
  absl::StatusOr<std::string> SendModel(const std::string& id = "") {
    return UploadModel(server_.client(), directory_.File("model"), {id, /*quiet=*/true});
  }
  absl::StatusOr<std::string> SendText() {
    return UploadText(server_.client(), directory_.File("text.jsonl"), {"", /*quiet=*/true});
  }
  // An upload of the model's files that broke off after so many bytes of the weights.
  void LeaveUnfinished(int64_t synced) {
    uploads_.unfinished = true;
    v1::Upload& upload = uploads_.upload;
    upload.set_name("uploads/left");
    upload.set_kind(v1::Upload::MODEL);
    upload.set_resource("models/left");
    for (const auto& [name, done] :
         {std::pair<std::string, int64_t>("config.json", 8), {"model.safetensors", synced}}) {
      const std::string bytes = ReadFile(directory_.File("model/" + name));
      v1::UploadFile* file = upload.add_files();
      file->set_name(name);
      file->set_size_bytes(static_cast<int64_t>(bytes.size()));
      file->set_sha256(Sha256Hex(bytes));
      file->set_synced_bytes(done);
      uploads_.received[name] = bytes.substr(0, static_cast<size_t>(done));
    }
  }
  void ExpectAllReceived() {
    EXPECT_EQ(uploads_.received["config.json"], "{\"a\": 1}");
    EXPECT_EQ(uploads_.received["model.safetensors"], weights_);
    EXPECT_EQ(uploads_.finished, 1);
  }

  const std::string weights_ = std::string(1'300'000, 'w') + "end";  // three messages
  TempDir directory_;
  FakeUploads uploads_;
  FakeServer server_{&uploads_};
};

TEST_F(UploadClientTest, AModelIsSentOnceFromTheBeginning) {
  const auto name = SendModel();
  ASSERT_TRUE(name.ok()) << name.status();
  EXPECT_EQ(*name, "models/drawn");
  EXPECT_EQ(uploads_.created, 1);
  EXPECT_THAT(uploads_.streams, ElementsAre(Pair("config.json", 0)));
  ExpectAllReceived();
}

TEST_F(UploadClientTest, WhatTheServerHasIsNotSent) {
  v1::Model model;
  model.set_name("models/there");
  uploads_.models = {model};
  EXPECT_EQ(*SendModel(), "models/there");
  EXPECT_EQ(uploads_.created, 0);
  EXPECT_THAT(uploads_.received, IsEmpty());
  EXPECT_EQ(uploads_.digest_asked.size(), 64u);
  // Under another name it is another model.
  EXPECT_EQ(*SendModel("mine"), "models/drawn");
  EXPECT_EQ(uploads_.created, 1);
}

TEST_F(UploadClientTest, AnUnfinishedUploadGoesOnWhereItWas) {
  LeaveUnfinished(1'000'000);
  const auto name = SendModel();
  ASSERT_TRUE(name.ok()) << name.status();
  EXPECT_EQ(*name, "models/left");
  EXPECT_EQ(uploads_.created, 0);
  EXPECT_THAT(uploads_.streams, ElementsAre(Pair("model.safetensors", 1'000'000)));
  ExpectAllReceived();
}

TEST_F(UploadClientTest, AnUnfinishedUploadIsFoundOnALaterPage) {
  LeaveUnfinished(10);
  uploads_.others_first = true;
  ASSERT_TRUE(SendModel().ok());
  EXPECT_EQ(uploads_.created, 0);
  EXPECT_EQ(uploads_.finished, 1);
}

TEST_F(UploadClientTest, AnUploadThatLacksNothingIsOnlyFinished) {
  LeaveUnfinished(static_cast<int64_t>(weights_.size()));
  ASSERT_TRUE(SendModel().ok());
  EXPECT_THAT(uploads_.streams, IsEmpty());
  ExpectAllReceived();
}

TEST_F(UploadClientTest, AnUnfinishedUploadOfOtherFilesIsLeftAlone) {
  LeaveUnfinished(1'000'000);
  uploads_.upload.mutable_files(1)->set_sha256(Sha256Hex("other"));
  uploads_.received.clear();
  EXPECT_EQ(*SendModel(), "models/drawn");
  EXPECT_EQ(uploads_.created, 1);
}

TEST_F(UploadClientTest, AnUnfinishedUploadToAnotherNameIsLeftAlone) {
  LeaveUnfinished(1'000'000);
  uploads_.received.clear();
  EXPECT_EQ(*SendModel("right"), "models/drawn");
  EXPECT_EQ(uploads_.created, 1);
}

TEST_F(UploadClientTest, AfterABrokenStreamItAsksWhatArrivedAndGoesOnThere) {
  uploads_.until_break = 8 + 700'000;
  const auto name = SendModel();
  ASSERT_TRUE(name.ok()) << name.status();
  EXPECT_THAT(uploads_.streams,
              ElementsAre(Pair("config.json", 0), Pair("model.safetensors", 700'000)));
  ExpectAllReceived();
}

TEST_F(UploadClientTest, ARefusalIsNotRepeated) {
  uploads_.refusal = {grpc::StatusCode::PERMISSION_DENIED, "the role quantize is missing"};
  const absl::Status status = SendModel().status();
  EXPECT_EQ(status, absl::PermissionDeniedError("the role quantize is missing"));
  EXPECT_EQ(uploads_.streams.size(), 1u);
  EXPECT_EQ(uploads_.finished, 0);
}

TEST_F(UploadClientTest, ATextIsTheServersOnlyUnderTheSameFileName) {
  v1::CalibrationSet set;
  set.set_name("calibrationSets/there");
  set.mutable_file()->set_name("text.txt");  // would be read as plain text
  uploads_.sets = {set};
  ASSERT_TRUE(SendText().ok());
  EXPECT_EQ(uploads_.received["text.jsonl"], "{\"text\": \"a\"}\n");
  uploads_.sets[0].mutable_file()->set_name("text.jsonl");
  EXPECT_EQ(*SendText(), "calibrationSets/there");
  EXPECT_EQ(uploads_.created, 1);
}

TEST_F(UploadClientTest, AFileThatIsNotThereIsNamed) {
  const absl::Status status =
      UploadText(server_.client(), directory_.File("absent.txt"), {"", true}).status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("absent.txt"));
}

}  // namespace
}  // namespace nibble
