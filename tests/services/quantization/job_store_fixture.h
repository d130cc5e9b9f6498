// SPDX-License-Identifier: Apache-2.0
// What the tests of a job store share.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "services/quantization/job_store.h"
#include "services/quantization/sqlite_job_store.h"
#include "services/quantization/store_schema.h"
#include "tests/services/quantization/fake_clock.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace testing {

inline constexpr char kDigest[] =
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

class JobStoreTest : public ::testing::Test {
 protected:
  JobStoreTest() { Reopen(); }

  void Close() {
    store_.reset();
    database_.reset();
  }
  // As after a restart of the service.
  void Reopen() {
    Close();
    absl::StatusOr<std::unique_ptr<SqliteDatabase>> database =
        OpenStoreDatabase(directory_.File("nibble.db"));
    NIBBLE_CHECK(database.ok());
    database_ = *std::move(database);
    LeaseOptions options;
    options.worker_lives = [this](std::string_view worker) {
      return living_.count(std::string(worker)) != 0;
    };
    store_ = MakeSqliteJobStore(*database_, clock_, options);
  }

  NewJob Job(const std::string& id) {
    NewJob job;
    job.id = id;
    job.tenant = "lab";
    job.creator = "alice";
    job.spec = absl::StrCat("spec of ", id);
    job.request_digest = absl::StrCat("digest of ", id);
    job.recipe = "gptq";
    job.scheme = "int4-g128";
    job.artifact_id = absl::StrCat("artifact-", id);
    return job;
  }
  void Create(const std::string& id) { ASSERT_TRUE(store_->CreateJob(Job(id)).ok()); }

  Lease LeaseIt(const std::string& worker = "w0") {
    absl::StatusOr<std::optional<JobRecord>> job = store_->LeaseNext(worker);
    EXPECT_TRUE(job.ok()) << job.status();
    EXPECT_TRUE(job->has_value()) << "nothing to lease";
    return job.ok() && job->has_value() ? Lease{(*job)->id, (*job)->attempt} : Lease{};
  }
  bool NothingToLease() {
    absl::StatusOr<std::optional<JobRecord>> job = store_->LeaseNext("w9");
    return job.ok() && !job->has_value();
  }
  JobRecord Get(const std::string& id) {
    absl::StatusOr<JobRecord> job = store_->GetJob(id);
    EXPECT_TRUE(job.ok()) << job.status();
    return job.value_or(JobRecord());
  }
  static PipelineCheckpoint Checkpoint(int32_t blocks, const std::string& tier = "tier") {
    return {blocks, {"attempt/block"}, {kDigest}, {"fingerprint", tier}};
  }
  static PublishIntent Intent(const std::string& digest = kDigest) {
    return {digest, "jobs/a/attempt-1/artifact", 123, {{"perplexity", 12.5}}};
  }
  void Publish(const Lease& lease, const std::string& digest = kDigest) {
    ASSERT_TRUE(store_->BeginPublish(lease, Intent(digest), "{}").ok());
    ASSERT_TRUE(store_->FinishPublish(lease).ok());
  }
  std::vector<JobEventKind> EventKinds(const std::string& id) {
    std::vector<JobEventKind> kinds;
    const std::vector<JobEventRecord> events = *store_->ListEvents(id, 0, 1000);
    for (const JobEventRecord& event : events) {
      kinds.push_back(event.kind);
    }
    return kinds;
  }

  TempDir directory_;
  FakeClock clock_;
  std::set<std::string> living_;
  std::unique_ptr<SqliteDatabase> database_;
  std::unique_ptr<JobStore> store_;
};
}  // namespace testing
}  // namespace nibble
