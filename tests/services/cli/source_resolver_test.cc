// SPDX-License-Identifier: Apache-2.0
// Without a quantization service in the process, from the data directory that another one's leaves.
#include "services/cli/source_resolver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>

#include "kernels/check.h"
#include "services/quantization/artifacts.h"
#include "services/quantization/data_layout.h"
#include "services/quantization/sqlite_job_store.h"
#include "services/quantization/sqlite_resource_store.h"
#include "services/quantization/store_schema.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

class SourceResolverTest : public ::testing::Test {
 protected:
  SourceResolverTest() {
    settings_.data_dir = directory_.File("data");
    NIBBLE_CHECK(layout().Create(PosixFileSystem()).ok());
  }
  DataLayout layout() const { return DataLayout{settings_.data_dir}; }

  // As a service of another process has left it: artifacts/a, models/m.
  void FillStore() {
    const auto database = *OpenStoreDatabase(layout().Database());
    const Clock clock;
    LeaseOptions leases;
    leases.worker_lives = [](std::string_view) { return true; };
    const auto jobs = MakeSqliteJobStore(*database, clock, leases);
    NewJob job;
    job.id = "j";
    job.artifact_id = "a";
    NIBBLE_CHECK(jobs->CreateJob(job).ok());
    const Lease lease{"j", (*jobs->LeaseNext("w@1"))->attempt};
    NIBBLE_CHECK(jobs->BeginPublish(lease, {"digest", "staged", 1, {}}, "{}").ok());
    NIBBLE_CHECK(jobs->FinishPublish(lease).ok());
    std::filesystem::create_directory(layout().Artifact("digest"));

    const auto resources = MakeSqliteResourceStore(*database, clock);
    UploadRecord upload;
    upload.id = "u";
    upload.resource = "models/m";
    upload.expire_time = clock.Now() + absl::Hours(1);
    upload.files = {{"config.json", 0, "", 0}};
    NIBBLE_CHECK(resources->CreateUpload(upload, {}).ok());
    NIBBLE_CHECK(resources->FinishUpload("u", "digest").ok());
  }

  absl::StatusOr<ModelSource> Resolve(const std::string& source) const {
    return SourceResolver(settings_, nullptr)(source);
  }

  TempDir directory_;
  Settings settings_;
};

TEST_F(SourceResolverTest, AnArtifactIsItsDirectoryAndDigestAndIsHeld) {
  FillStore();
  auto source = Resolve("artifacts/a");
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->path, layout().Artifact("digest"));
  EXPECT_EQ(source->digest, "digest");
  const auto remove = [&] {
    const auto database = *OpenStoreDatabase(layout().Database());
    const Clock clock;
    return DeleteArtifact(*MakeSqliteJobStore(*database, clock, {}), PosixFileSystem(), layout(),
                          "a");
  };
  EXPECT_TRUE(absl::IsFailedPrecondition(remove())) << "it is being served";
  *source = ModelSource();
  EXPECT_TRUE(remove().ok());
}

TEST_F(SourceResolverTest, AModelIsTheDirectoryOfItsUpload) {
  FillStore();
  const auto source = Resolve("models/m");
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->path, layout().Source("u"));
  EXPECT_EQ(source->digest, "") << "to be computed";
}

TEST_F(SourceResolverTest, WhatIsNotThereIsNotFound) {
  FillStore();
  for (const char* name : {"artifacts/b", "models/b"}) {
    EXPECT_TRUE(absl::IsNotFound(Resolve(name).status())) << Resolve(name).status();
  }
}

TEST_F(SourceResolverTest, NamesThatAreNoneAreRefused) {
  FillStore();
  for (const char* name : {"artifacts/../x", "artifacts/", "models/a/b", "models/.."}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Resolve(name).status())) << name;
  }
}

TEST_F(SourceResolverTest, WithoutAStoreItSaysSoAndMakesNone) {
  for (const char* name : {"artifacts/a", "models/m"}) {
    const absl::Status status = Resolve(name).status();
    EXPECT_TRUE(absl::IsNotFound(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("no job store"));
  }
  EXPECT_FALSE(std::filesystem::exists(layout().Database()));
}

TEST_F(SourceResolverTest, EverythingElseIsAPathBeneathTheModelRoot) {
  EXPECT_TRUE(absl::IsPermissionDenied(Resolve("tiny").status())) << "there is no root";
  settings_.model_root = directory_.File("models");
  std::filesystem::create_directories(settings_.model_root + "/tiny");
  WriteFile(settings_.model_root + "/tiny/config.json", "{}");
  WriteFile(settings_.model_root + "/tiny/model.safetensors", "weights");
  const auto source = Resolve("tiny");
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_THAT(source->path, HasSubstr(ScratchDirectory(settings_)));
  EXPECT_EQ(ReadFile(source->path + "/config.json"), "{}");
  EXPECT_FALSE(Resolve("../data").ok());
}

}  // namespace
}  // namespace nibble
