// SPDX-License-Identifier: Apache-2.0
// The job store as a specification. Every store that is to come must pass it.
#include "services/quantization/job_store.h"

#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "services/quantization/sqlite_resource_store.h"
#include "tests/services/quantization/job_store_fixture.h"
#include "tests/services/quantization/power_cut_vfs.h"

namespace nibble {
namespace {

using ::nibble::testing::JobStoreTest;
using ::nibble::testing::kDigest;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST_F(JobStoreTest, AJobGoesFromQueuedToSucceeded) {
  Create("a");
  EXPECT_EQ(Get("a").state, JobState::kQueued);
  const Lease lease = LeaseIt();
  EXPECT_EQ(Get("a").state, JobState::kRunning);
  EXPECT_EQ(Get("a").attempt, 1);
  ASSERT_TRUE(store_->RecordSource(lease, "d1", "t").ok());
  ASSERT_TRUE(store_->CommitCheckpoint(lease, Checkpoint(1)).ok());
  ASSERT_TRUE(store_->BeginPublish(lease, Intent(), R"({"kl":0.1})").ok());
  EXPECT_EQ(Get("a").state, JobState::kPublishing);
  EXPECT_TRUE(absl::IsNotFound(store_->GetArtifact("artifact-a").status()))
      << "an artifact is listed only when it is in its place";
  ASSERT_TRUE(store_->FinishPublish(lease).ok());

  EXPECT_EQ(Get("a").state, JobState::kSucceeded);
  EXPECT_EQ(*store_->GetReport("a"), R"({"kl":0.1})");
  const ArtifactRecord artifact = *store_->GetArtifact("artifact-a");
  EXPECT_EQ(artifact.digest, kDigest);
  EXPECT_EQ(artifact.bytes, 123);
  EXPECT_EQ(artifact.source_digest, "d1");
  EXPECT_EQ(artifact.quality["perplexity"], 12.5);
  EXPECT_TRUE(NothingToLease());
}

TEST_F(JobStoreTest, EverythingSurvivesARestart) {
  Create("a");
  const Lease lease = LeaseIt();
  ASSERT_TRUE(store_->CommitCheckpoint(lease, Checkpoint(1)).ok());
  ASSERT_TRUE(
      store_->RecordProgress(lease, PipelineProgress{"quantize", 1, 8, 0.2, "m"}, {"line"}).ok());
  Reopen();
  EXPECT_EQ(Get("a").state, JobState::kRunning);
  EXPECT_EQ(Get("a").spec, "spec of a");
  EXPECT_EQ(Get("a").progress.phase, "quantize");
  EXPECT_THAT(*store_->Checkpoints("a"), SizeIs(1));
  EXPECT_EQ(store_->ListLogs("a", 0, 10)->front().text, "line");
  EXPECT_TRUE(store_->Renew(lease).ok()) << "the worker goes on as if nothing had happened";
}

TEST_F(JobStoreTest, NothingThatWasCommittedIsLostByAPowerCut) {
  testing::PowerCutVfs disk;
  Reopen();
  int cuts = 0;
  // The store as it is found after a cut at this moment.
  const auto found = [&](const auto& check) {
    const std::string left = directory_.File(absl::StrCat("cut", cuts++));
    disk.Leave(left);
    const auto database = *OpenStoreDatabase(left + "/nibble.db");
    check(*MakeSqliteJobStore(*database, clock_, {}));
  };
  const auto state = [](JobState wanted) {
    return [wanted](JobStore& store) { EXPECT_EQ(store.GetJob("a")->state, wanted); };
  };
  Create("a");
  found(state(JobState::kQueued));
  const Lease lease = LeaseIt();
  found(state(JobState::kRunning));
  for (int32_t blocks = 1; blocks <= 3; ++blocks) {
    ASSERT_TRUE(store_->CommitCheckpoint(lease, Checkpoint(blocks)).ok());
    found([&](JobStore& store) {
      const std::vector<PipelineCheckpoint> checkpoints = *store.Checkpoints("a");
      ASSERT_FALSE(checkpoints.empty());
      EXPECT_EQ(checkpoints.back().blocks_done, blocks);
    });
  }
  ASSERT_TRUE(store_->BeginPublish(lease, Intent(), "{}").ok());
  found(state(JobState::kPublishing));
  ASSERT_TRUE(store_->FinishPublish(lease).ok());
  found(state(JobState::kSucceeded));
  found([](JobStore& store) { EXPECT_EQ(store.GetArtifact("artifact-a")->digest, kDigest); });
  Close();
}

TEST_F(JobStoreTest, AnOlderSchemaIsBroughtUpWithItsJobs) {
  Create("a");
  const Lease lease = LeaseIt();
  ASSERT_TRUE(database_
                  ->Execute("ALTER TABLE checkpoints DROP COLUMN fingerprint;"
                            "ALTER TABLE checkpoints DROP COLUMN tier;"
                            "ALTER TABLE jobs ADD COLUMN best_blocks INTEGER NOT NULL DEFAULT 0;"
                            "INSERT INTO checkpoints (job, attempt, blocks_done, files)"
                            " VALUES ('a', 1, 1, '[]');"
                            "PRAGMA user_version=1")
                  .ok());
  Reopen();
  ASSERT_THAT(*store_->Checkpoints("a"), SizeIs(1));
  EXPECT_EQ(store_->Checkpoints("a")->front().basis, CheckpointBasis());
  EXPECT_TRUE(store_->CommitCheckpoint(lease, Checkpoint(1)).ok());
  EXPECT_THAT(*store_->Checkpoints("a"), SizeIs(2));
  EXPECT_EQ(store_->Checkpoints("a")->back().basis, Checkpoint(1).basis);
}

TEST_F(JobStoreTest, ANewerSchemaIsRefused) {
  ASSERT_TRUE(database_->Execute("PRAGMA user_version=99").ok());
  const absl::Status status = OpenStoreDatabase(directory_.File("nibble.db")).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("99"));
}

TEST_F(JobStoreTest, TheOldestJobIsLeasedFirstAndByOneWorkerOnly) {
  Create("a");
  Create("b");
  EXPECT_EQ(LeaseIt("w0").job, "a");
  EXPECT_EQ(LeaseIt("w1").job, "b");
  EXPECT_TRUE(NothingToLease());
}

TEST_F(JobStoreTest, WorkersOfSeveralProcessesNeverShareAJob) {
  constexpr int kJobs = 40;
  for (int i = 0; i < kJobs; ++i) Create(absl::StrCat("j", i));
  std::vector<std::set<std::string>> leased(2);
  std::vector<std::thread> threads;
  for (std::set<std::string>& mine : leased) {
    threads.emplace_back([&mine, this] {
      // A connection of its own, as another process would have.
      const auto database = *OpenStoreDatabase(directory_.File("nibble.db"));
      LeaseOptions options;
      options.worker_lives = [](std::string_view) { return true; };
      const auto store = MakeSqliteJobStore(*database, clock_, options);
      while (const std::optional<JobRecord> job = *store->LeaseNext("w")) mine.insert(job->id);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(leased[0].size() + leased[1].size(), kJobs);
  for (const std::string& id : leased[0]) EXPECT_EQ(leased[1].count(id), 0u) << id;
}

// ---- idempotency ----

TEST_F(JobStoreTest, TheSameRequestMakesOneJob) {
  NewJob first = Job("a");
  first.request_id = "r1";
  ASSERT_TRUE(store_->CreateJob(first).ok());
  NewJob again = first;
  again.id = "b";
  EXPECT_EQ(store_->CreateJob(again)->id, "a");
  Reopen();
  EXPECT_EQ(store_->CreateJob(again)->id, "a") << "also after a restart";
}

TEST_F(JobStoreTest, TheSameRequestIdWithAnotherRequestIsRefused) {
  NewJob first = Job("a");
  first.request_id = "r1";
  ASSERT_TRUE(store_->CreateJob(first).ok());
  NewJob other = Job("b");
  other.request_id = "r1";
  const absl::Status status = store_->CreateJob(other).status();
  EXPECT_TRUE(absl::IsAlreadyExists(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("jobs/a"));
}

TEST_F(JobStoreTest, RequestIdsAreScopedToTheCaller) {
  for (const char* creator : {"alice", "bob"}) {
    NewJob job = Job(creator);
    job.creator = creator;
    job.request_id = "r1";
    EXPECT_EQ(store_->CreateJob(job)->id, creator);
  }
}

TEST_F(JobStoreTest, ARequestIdIsFreeAgainWhenTheJobIsDeleted) {
  NewJob first = Job("a");
  first.request_id = "r1";
  ASSERT_TRUE(store_->CreateJob(first).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->DeleteJob("a"))) << "it has not ended";
  ASSERT_TRUE(store_->RequestCancel("a").ok());
  ASSERT_TRUE(store_->DeleteJob("a").ok());
  NewJob second = Job("b");
  second.request_id = "r1";
  EXPECT_EQ(store_->CreateJob(second)->id, "b");
}

TEST_F(JobStoreTest, AnArtifactIdIsReservedFromTheBeginning) {
  Create("a");
  NewJob other = Job("b");
  other.artifact_id = "artifact-a";
  EXPECT_TRUE(absl::IsAlreadyExists(store_->CreateJob(other).status())) << "while it runs";
  Publish(LeaseIt());
  EXPECT_TRUE(absl::IsAlreadyExists(store_->CreateJob(other).status())) << "when it exists";
  ASSERT_TRUE(store_->DeleteArtifact("artifact-a").ok());
  EXPECT_TRUE(store_->CreateJob(other).ok()) << "not when it was deleted";
}

TEST_F(JobStoreTest, UnfinishedJobsAreLimited) {
  NewJob job = Job("a");
  job.max_queued = 1;
  ASSERT_TRUE(store_->CreateJob(job).ok());
  NewJob second = Job("b");
  second.max_queued = 1;
  EXPECT_TRUE(absl::IsResourceExhausted(store_->CreateJob(second).status()));
  ASSERT_TRUE(store_->RequestCancel("a").ok());
  EXPECT_TRUE(store_->CreateJob(second).ok());
}

// ---- events, logs, lists ----

TEST_F(JobStoreTest, EventsTellTheWholeStoryInOrder) {
  Create("a");
  const Lease first = LeaseIt();
  clock_.Advance(absl::Seconds(3));
  ASSERT_TRUE(store_->CommitCheckpoint(first, Checkpoint(1)).ok());
  ASSERT_TRUE(
      store_->EndAttempt(first, AttemptEnd::kDrained, "asked to", absl::ZeroDuration()).ok());
  Publish(LeaseIt());

  using K = JobEventKind;
  EXPECT_THAT(EventKinds("a"),
              ElementsAre(K::kStateChanged, K::kStateChanged, K::kBlockDone, K::kAttemptEnded,
                          K::kStateChanged, K::kStateChanged, K::kStateChanged, K::kStateChanged));
  const std::vector<JobEventRecord> events = *store_->ListEvents("a", 0, 100);
  for (size_t i = 1; i < events.size(); ++i) {
    EXPECT_GT(events[i].sequence, events[i - 1].sequence);
  }
  EXPECT_EQ(events[2].progress.blocks_done, 1);
  EXPECT_DOUBLE_EQ(events[2].seconds, 3.0);
  EXPECT_EQ(events[3].end, AttemptEnd::kDrained);
  EXPECT_EQ(events[3].message, "asked to");
  EXPECT_EQ(events.back().state, JobState::kSucceeded);
  EXPECT_EQ(Get("a").sequence, events.back().sequence);
  EXPECT_THAT(*store_->ListEvents("a", events[5].sequence, 100), SizeIs(2));
  EXPECT_THAT(*store_->ListEvents("", 0, 3), SizeIs(3));
}

TEST_F(JobStoreTest, OfProgressOnlyTheNewestIsKept) {
  Create("a");
  const Lease lease = LeaseIt();
  for (int i = 1; i <= 100; ++i) {
    ASSERT_TRUE(
        store_->RecordProgress(lease, PipelineProgress{"quantize", i, 100, i * 0.01, ""}, {}).ok());
  }
  const std::vector<JobEventRecord> events = *store_->ListEvents("a", 0, 1000);
  ASSERT_THAT(events, SizeIs(3));
  EXPECT_EQ(events[2].progress.blocks_done, 100);
  EXPECT_EQ(Get("a").progress.fraction, 1.0);
}

TEST_F(JobStoreTest, TheEventsOfAJobThatIsRequeuedForEverAreBounded) {
  Create("a");
  ASSERT_TRUE(database_->Execute("PRAGMA synchronous=OFF").ok());  // only the count matters here
  const int rounds = kMaxJobEvents / 3 + 50;
  for (int i = 0; i < rounds; ++i) {
    ASSERT_TRUE(store_->EndAttempt(LeaseIt(), AttemptEnd::kDrained, "", absl::ZeroDuration()).ok());
  }
  EXPECT_LE(store_->ListEvents("a", 0, 1 << 20)->size(), size_t{kMaxJobEvents});
}

TEST_F(JobStoreTest, LogsAreBoundedInNumberAndLength) {
  Create("a");
  const Lease lease = LeaseIt();
  const std::vector<std::string> batch(500, "line");
  for (int i = 0; i < kMaxLogLines / 500 + 3; ++i) {
    ASSERT_TRUE(store_->RecordProgress(lease, std::nullopt, batch).ok());
  }
  // "é" is two bytes; the cut must not go through one.
  std::string accents = "x";
  for (int i = 0; i < 4096; ++i) accents += "é";
  ASSERT_TRUE(store_->RecordProgress(lease, std::nullopt, {accents}).ok());
  const std::vector<LogRecord> lines = *store_->ListLogs("a", 0, 1 << 20);
  EXPECT_LE(lines.size(), size_t{kMaxLogLines});
  EXPECT_GE(lines.size(), size_t{kMaxLogLines} / 2);
  EXPECT_EQ(lines.back().text, accents.substr(0, 4095));
}

TEST_F(JobStoreTest, ListsArePagedNewestFirstAndFiltered) {
  for (int i = 0; i < 5; ++i) Create(absl::StrCat("j", i));
  ASSERT_TRUE(store_->RequestCancel("j2").ok());
  const auto ids = [](const JobPage& page) {
    std::vector<std::string> result;
    for (const JobRecord& job : page.jobs) result.push_back(job.id);
    return result;
  };
  const JobPage first = *store_->ListJobs("lab", {}, 2, 0);
  EXPECT_THAT(ids(first), ElementsAre("j4", "j3"));
  const JobPage second = *store_->ListJobs("lab", {}, 2, first.next);
  EXPECT_THAT(ids(second), ElementsAre("j2", "j1"));
  const JobPage third = *store_->ListJobs("lab", {}, 2, second.next);
  EXPECT_THAT(ids(third), ElementsAre("j0"));
  EXPECT_EQ(third.next, 0);
  EXPECT_THAT(ids(*store_->ListJobs("lab", {JobState::kCancelled}, 9, 0)), ElementsAre("j2"));
  EXPECT_THAT(ids(*store_->ListJobs("elsewhere", {}, 9, 0)), IsEmpty());
}

TEST_F(JobStoreTest, JobsAreCountedByStateAndRecipe) {
  Create("a");
  Create("b");
  NewJob custom = Job("c");
  custom.recipe = "custom";
  ASSERT_TRUE(store_->CreateJob(custom).ok());
  LeaseIt();
  int64_t queued_gptq = 0, all = 0;
  const std::vector<JobStore::Count> counts = *store_->CountJobs();
  for (const JobStore::Count& count : counts) {
    all += count.jobs;
    if (count.state == JobState::kQueued && count.recipe == "gptq") queued_gptq = count.jobs;
  }
  EXPECT_EQ(all, 3);
  EXPECT_EQ(queued_gptq, 1);
}

}  // namespace
}  // namespace nibble
