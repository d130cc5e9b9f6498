// SPDX-License-Identifier: Apache-2.0
// The job store as a specification. Every store that is to come must pass it.
#include "services/quantization/job_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "services/quantization/sqlite_job_store.h"
#include "services/quantization/sqlite_resource_store.h"
#include "services/quantization/store_schema.h"
#include "services/quantization/worker_identity.h"
#include "tests/services/quantization/fake_clock.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr char kDigest[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

class JobStoreTest : public ::testing::Test {
 protected:
  JobStoreTest() { Reopen(); }

  // As after a restart of the service.
  void Reopen() {
    store_.reset();
    database_.reset();
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

// ---- leases and fencing ----

TEST_F(JobStoreTest, ARenewedLeaseDoesNotRunOut) {
  Create("a");
  const Lease lease = LeaseIt();
  for (int i = 0; i < 10; ++i) {
    clock_.Advance(absl::Seconds(29));
    EXPECT_EQ(*store_->ReclaimExpired(), 0);
    ASSERT_TRUE(store_->Renew(lease).ok());
  }
  EXPECT_EQ(Get("a").attempt, 1);
}

TEST_F(JobStoreTest, ALeaseThatRanOutPutsTheJobBack) {
  Create("a");
  LeaseIt();
  clock_.Advance(absl::Seconds(29));
  EXPECT_TRUE(NothingToLease());
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(LeaseIt("w1").attempt, 2);
}

TEST_F(JobStoreTest, NothingThatAnOldAttemptWritesIsTaken) {
  Create("a");
  const Lease old = LeaseIt("w0");
  ASSERT_TRUE(store_->CommitCheckpoint(old, Checkpoint(1)).ok());
  clock_.Advance(absl::Seconds(31));
  const Lease current = LeaseIt("w1");
  ASSERT_EQ(current.attempt, 2);
  const int64_t before = *store_->LastSequence();

  EXPECT_TRUE(absl::IsAborted(store_->Renew(old).status()));
  EXPECT_TRUE(absl::IsAborted(store_->CheckLease(old).status()));
  EXPECT_TRUE(absl::IsAborted(store_->RecordSource(old, "x", "t")));
  EXPECT_TRUE(absl::IsAborted(store_->RecordProgress(old, PipelineProgress{"x", 9, 9, 1, ""}, {})));
  EXPECT_TRUE(absl::IsAborted(store_->RecordProgress(old, std::nullopt, {"log"})));
  EXPECT_TRUE(absl::IsAborted(store_->CommitCheckpoint(old, Checkpoint(2))));
  EXPECT_TRUE(absl::IsAborted(store_->BeginPublish(old, Intent(), "{}")));
  EXPECT_TRUE(absl::IsAborted(store_->FinishPublish(old)));
  EXPECT_TRUE(absl::IsAborted(store_->Fail(old, JobReason::kInvalidInput, "x", "")));
  EXPECT_TRUE(
      absl::IsAborted(store_->EndAttempt(old, AttemptEnd::kDrained, "x", absl::ZeroDuration())));

  EXPECT_EQ(*store_->LastSequence(), before) << "not one event";
  EXPECT_THAT(*store_->Checkpoints("a"), SizeIs(1));
  EXPECT_THAT(*store_->ListLogs("a", 0, 10), IsEmpty());
  EXPECT_EQ(Get("a").state, JobState::kRunning);
  EXPECT_EQ(Get("a").source_digest, "");
  EXPECT_EQ(*store_->CheckLease(current), false);
}

TEST_F(JobStoreTest, AFinishedAttemptCannotWriteEither) {
  Create("a");
  const Lease lease = LeaseIt();
  Publish(lease);
  EXPECT_TRUE(absl::IsAborted(store_->FinishPublish(lease))) << "an artifact is made once";
  EXPECT_TRUE(absl::IsAborted(store_->CommitCheckpoint(lease, Checkpoint(3))));
  EXPECT_TRUE(absl::IsAborted(store_->Renew(lease).status()));
}

TEST_F(JobStoreTest, PublishingNeedsTheIntentFirst) {
  Create("a");
  const Lease lease = LeaseIt();
  EXPECT_TRUE(absl::IsAborted(store_->FinishPublish(lease)));
  EXPECT_TRUE(absl::IsNotFound(store_->GetArtifact("artifact-a").status()));
}

TEST_F(JobStoreTest, AClockThatJumpsForwardCostsARetryOnly) {
  Create("a");
  const Lease old = LeaseIt("w0");
  living_.insert("w0");
  ASSERT_TRUE(store_->CommitCheckpoint(old, Checkpoint(1)).ok());
  clock_.Advance(absl::Hours(24 * 365));
  const Lease current = LeaseIt("w1");
  EXPECT_EQ(current.attempt, 2);
  EXPECT_THAT(*store_->Checkpoints("a"), SizeIs(1)) << "it goes on where the first one was";
  EXPECT_TRUE(absl::IsAborted(store_->CommitCheckpoint(old, Checkpoint(2))));
}

TEST_F(JobStoreTest, AClockThatJumpsBackLeavesLeasesAndQueueUsable) {
  Create("a");
  Create("b");
  const Lease lease = LeaseIt("w0");
  const Lease paused = LeaseIt("w1");
  ASSERT_TRUE(
      store_->EndAttempt(paused, AttemptEnd::kPaused, "disk is full", absl::Minutes(1)).ok());
  clock_.Advance(-absl::Hours(24 * 365));
  EXPECT_TRUE(store_->Renew(lease).ok());
  EXPECT_EQ(LeaseIt("w2").job, "b") << "not paused for a year";
  clock_.Advance(absl::Seconds(31));
  EXPECT_EQ(*store_->ReclaimExpired(), 2);
}

// ---- attempts ----

TEST_F(JobStoreTest, ThreeAttemptsThatCrashWithoutABlockEndTheJob) {
  Create("a");
  for (int attempt = 1; attempt <= 3; ++attempt) {
    EXPECT_EQ(LeaseIt("w@1").attempt, attempt);
    EXPECT_EQ(*store_->ReclaimFrom("w", "signal 9"), 1);
  }
  EXPECT_EQ(Get("a").state, JobState::kFailed);
  EXPECT_EQ(Get("a").reason, JobReason::kAttemptsExhausted);
  EXPECT_THAT(Get("a").message, HasSubstr("signal 9"));
}

TEST_F(JobStoreTest, ABlockResetsTheCount) {
  Create("a");
  for (int32_t block = 1; block <= 8; ++block) {
    ASSERT_TRUE(store_->CommitCheckpoint(LeaseIt("w@1"), Checkpoint(block)).ok());
    ASSERT_EQ(*store_->ReclaimFrom("w", "signal 9"), 1);
    LeaseIt("w@1");
    ASSERT_EQ(*store_->ReclaimFrom("w", "signal 9"), 1);
  }
  EXPECT_EQ(Get("a").state, JobState::kQueued);
  EXPECT_EQ(Get("a").attempt, 16);
}

TEST_F(JobStoreTest, ABlockThatWasDoneBeforeIsNotANewOne) {
  Create("a");
  ASSERT_TRUE(store_->CommitCheckpoint(LeaseIt("w@1"), Checkpoint(5)).ok());
  ASSERT_EQ(*store_->ReclaimFrom("w", "crash"), 1);
  for (int attempt = 0; attempt < 3; ++attempt) {
    ASSERT_TRUE(store_->CommitCheckpoint(LeaseIt("w@1"), Checkpoint(5)).ok());
    ASSERT_EQ(*store_->ReclaimFrom("w", "crash"), 1);
  }
  EXPECT_EQ(Get("a").reason, JobReason::kAttemptsExhausted);
}

TEST_F(JobStoreTest, ABlockOfAnotherTierIsANewOne) {
  Create("a");
  ASSERT_TRUE(store_->CommitCheckpoint(LeaseIt("w@1"), Checkpoint(5)).ok());
  ASSERT_EQ(*store_->ReclaimFrom("w", "crash"), 1);
  // It starts over there, and gets a block further with every attempt.
  for (int32_t block = 1; block <= 5; ++block) {
    ASSERT_TRUE(store_->CommitCheckpoint(LeaseIt("w@1"), Checkpoint(block, "other")).ok());
    EXPECT_EQ(Get("a").idle_attempts, 0);
    ASSERT_EQ(*store_->ReclaimFrom("w", "crash"), 1);
  }
  EXPECT_EQ(Get("a").state, JobState::kQueued);
  // Going back and forth without a new block on either does count.
  for (const char* tier : {"tier", "other", "tier"}) {
    ASSERT_TRUE(store_->CommitCheckpoint(LeaseIt("w@1"), Checkpoint(1, tier)).ok());
    ASSERT_EQ(*store_->ReclaimFrom("w", "crash"), 1);
  }
  EXPECT_EQ(Get("a").reason, JobReason::kAttemptsExhausted);
}

TEST_F(JobStoreTest, DrainsPausesAndLostLeasesDoNotCount) {
  Create("a");
  living_.insert("w0");
  for (int i = 0; i < 3 * kMaxIdleAttempts; ++i) {
    const Lease lease = LeaseIt("w0");
    switch (i % 3) {
      case 0:
        ASSERT_TRUE(store_->EndAttempt(lease, AttemptEnd::kDrained, "", absl::ZeroDuration()).ok());
        break;
      case 1:
        ASSERT_TRUE(
            store_->EndAttempt(lease, AttemptEnd::kPaused, "full", absl::ZeroDuration()).ok());
        break;
      default:
        clock_.Advance(absl::Seconds(31));
        ASSERT_EQ(*store_->ReclaimExpired(), 1);
    }
  }
  EXPECT_EQ(Get("a").state, JobState::kQueued);
  EXPECT_EQ(Get("a").idle_attempts, 0);
  EXPECT_EQ(Get("a").leases_lost, 3);
}

TEST_F(JobStoreTest, ALeaseThatRanOutUnderADeadWorkerIsACrash) {
  Create("a");
  for (int i = 0; i < 3; ++i) {
    LeaseIt("dead");
    clock_.Advance(absl::Seconds(31));
    ASSERT_EQ(*store_->ReclaimExpired(), 1);
  }
  EXPECT_EQ(Get("a").reason, JobReason::kAttemptsExhausted);
  EXPECT_EQ(Get("a").leases_lost, 0);
}

TEST_F(JobStoreTest, ErrorsThatMayPassCountToo) {
  Create("a");
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(
        store_->EndAttempt(LeaseIt(), AttemptEnd::kFailed, "no memory", absl::ZeroDuration()).ok());
  }
  EXPECT_EQ(Get("a").state, JobState::kFailed);
  EXPECT_THAT(Get("a").message, HasSubstr("no memory"));
}

TEST_F(JobStoreTest, APausedJobSaysWhyAndRunsLater) {
  Create("a");
  ASSERT_TRUE(
      store_
          ->EndAttempt(LeaseIt(), AttemptEnd::kPaused, "disk is full: 3 MB free", absl::Seconds(60))
          .ok());
  EXPECT_EQ(Get("a").state, JobState::kQueued);
  EXPECT_EQ(Get("a").pause_reason, "disk is full: 3 MB free");
  const JobEventRecord event = store_->ListEvents("a", 0, 100)->back();
  EXPECT_EQ(event.kind, JobEventKind::kStateChanged);
  EXPECT_EQ(event.message, "disk is full: 3 MB free");
  clock_.Advance(absl::Seconds(59));
  EXPECT_TRUE(NothingToLease());
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(LeaseIt().attempt, 2);
  EXPECT_EQ(Get("a").pause_reason, "");
}

TEST_F(JobStoreTest, ReclaimingFromAWorkerLeavesTheOthersAlone) {
  Create("a");
  Create("b");
  LeaseIt("w1@x");
  LeaseIt("w10@x");
  EXPECT_EQ(*store_->ReclaimFrom("w1", "gone"), 1);
  EXPECT_EQ(Get("a").state, JobState::kQueued);
  EXPECT_EQ(Get("b").state, JobState::kRunning);
}

// ---- cancelling ----

TEST_F(JobStoreTest, AQueuedJobIsCancelledAtOnce) {
  Create("a");
  EXPECT_EQ(store_->RequestCancel("a")->state, JobState::kCancelled);
  EXPECT_EQ(store_->RequestCancel("a")->state, JobState::kCancelled) << "again";
  EXPECT_TRUE(NothingToLease());
}

TEST_F(JobStoreTest, ARunningJobHearsOfItAndEndsCancelled) {
  Create("a");
  const Lease lease = LeaseIt();
  EXPECT_FALSE(*store_->CheckLease(lease));
  EXPECT_EQ(store_->RequestCancel("a")->state, JobState::kRunning);
  EXPECT_TRUE(*store_->CheckLease(lease));
  EXPECT_TRUE(*store_->Renew(lease));
  EXPECT_TRUE(absl::IsCancelled(store_->BeginPublish(lease, Intent(), "{}")))
      << "it is not published after its cancellation";
  ASSERT_TRUE(store_->EndAttempt(lease, AttemptEnd::kDrained, "", absl::ZeroDuration()).ok());
  EXPECT_EQ(Get("a").state, JobState::kCancelled);
}

TEST_F(JobStoreTest, ACancelledJobWhoseWorkerDiedIsNotRunAgain) {
  Create("a");
  LeaseIt();
  ASSERT_TRUE(store_->RequestCancel("a").ok());
  clock_.Advance(absl::Seconds(31));
  EXPECT_TRUE(NothingToLease());
  EXPECT_EQ(Get("a").state, JobState::kCancelled);
}

TEST_F(JobStoreTest, APublishingJobCanNoLongerBeCancelled) {
  Create("a");
  const Lease lease = LeaseIt();
  ASSERT_TRUE(store_->BeginPublish(lease, Intent(), "{}").ok());
  EXPECT_FALSE(store_->RequestCancel("a")->cancel_requested);
  EXPECT_TRUE(store_->FinishPublish(lease).ok());
}

// ---- publishing ----

TEST_F(JobStoreTest, APublishingJobIsTakenOverOnlyFromADeadOrLateWorker) {
  Create("a");
  const Lease old = LeaseIt("w0");
  living_.insert("w0");
  ASSERT_TRUE(store_->BeginPublish(old, Intent(), "{}").ok());
  EXPECT_FALSE(store_->TakeOverPublish("w1")->has_value()) << "the worker lives";
  living_.clear();
  const std::optional<JobRecord> taken = *store_->TakeOverPublish("w1");
  ASSERT_TRUE(taken.has_value());
  EXPECT_EQ(taken->artifact_digest, kDigest);
  EXPECT_EQ(taken->staged, Intent().staged);
  EXPECT_TRUE(absl::IsAborted(store_->FinishPublish(old))) << "fenced";
  EXPECT_TRUE(store_->FinishPublish({taken->id, taken->attempt}).ok());
  EXPECT_EQ(store_->ListArtifacts("", 10, 0)->artifacts.size(), 1u);
}

TEST_F(JobStoreTest, APublishThatIsRevertedRunsAgain) {
  Create("a");
  const Lease lease = LeaseIt();
  ASSERT_TRUE(store_->BeginPublish(lease, Intent(), "{}").ok());
  ASSERT_TRUE(store_->EndAttempt(lease, AttemptEnd::kFailed, "lost", absl::ZeroDuration()).ok());
  EXPECT_EQ(Get("a").state, JobState::kQueued);
  EXPECT_EQ(Get("a").artifact_digest, "");
  EXPECT_EQ(LeaseIt().attempt, 2);
}

TEST_F(JobStoreTest, ADirectoryIsDoomedOnlyWhenNobodyNamesIt) {
  Create("a");
  Publish(LeaseIt());
  Create("b");
  const Lease b = LeaseIt();
  ASSERT_TRUE(store_->BeginPublish(b, Intent(), "{}").ok()) << "the same contents";

  EXPECT_EQ(*store_->DeleteArtifact("artifact-a"), std::nullopt) << "job b is publishing it";
  EXPECT_FALSE(*store_->DoomIfOrphan(kDigest));
  ASSERT_TRUE(store_->FinishPublish(b).ok());
  EXPECT_EQ(*store_->DeleteArtifact("artifact-b"), kDigest);
  EXPECT_THAT(*store_->ListDoomed(), ElementsAre(kDigest));
}

TEST_F(JobStoreTest, NobodyPublishesIntoADoomedDirectory) {
  Create("a");
  Publish(LeaseIt());
  ASSERT_TRUE(store_->DeleteArtifact("artifact-a").ok());
  Create("b");
  const Lease b = LeaseIt();
  EXPECT_TRUE(absl::IsUnavailable(store_->BeginPublish(b, Intent(), "{}")));
  ASSERT_TRUE(store_->FinishDelete(kDigest).ok());
  EXPECT_TRUE(store_->BeginPublish(b, Intent(), "{}").ok());
}

TEST_F(JobStoreTest, AFailedGateKeepsTheReport) {
  Create("a");
  ASSERT_TRUE(
      store_->Fail(LeaseIt(), JobReason::kGateFailed, "kl 0.3 > 0.1", R"({"kl":0.3})").ok());
  EXPECT_EQ(Get("a").state, JobState::kFailed);
  EXPECT_EQ(Get("a").reason, JobReason::kGateFailed);
  EXPECT_EQ(*store_->GetReport("a"), R"({"kl":0.3})");
}

TEST_F(JobStoreTest, ASourceThatChangedBetweenAttemptsIsNoticed) {
  Create("a");
  const Lease first = LeaseIt();
  ASSERT_TRUE(store_->RecordSource(first, "d1", "t").ok());
  ASSERT_TRUE(store_->EndAttempt(first, AttemptEnd::kDrained, "", absl::ZeroDuration()).ok());
  const Lease second = LeaseIt();
  EXPECT_TRUE(store_->RecordSource(second, "d1", "t").ok());
  const absl::Status status = store_->RecordSource(second, "d2", "t");
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("changed"));
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->RecordSource(second, "d1", "other text")));
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

// ---- worker identities ----

TEST(WorkerIdentityTest, AProcessIsRecognisedByItsStartNotOnlyItsNumber) {
  const std::string me = WorkerIdentity("w0", getpid());
  EXPECT_TRUE(WorkerLives(me));
  EXPECT_FALSE(WorkerLives(me + "1")) << "same number, started at another time";
  EXPECT_FALSE(WorkerLives(absl::StrCat("w0@some-other-boot", me.substr(me.find(':')))));
  EXPECT_FALSE(WorkerLives(""));
  EXPECT_FALSE(WorkerLives("w0@a:b:c"));
}

TEST(WorkerIdentityTest, ADeadProcessDoesNotLive) {
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  const std::string identity = WorkerIdentity("w", child);
  EXPECT_TRUE(WorkerLives(identity));
  kill(child, SIGKILL);
  siginfo_t info;
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);
  EXPECT_FALSE(WorkerLives(identity)) << "a zombie";
  waitpid(child, nullptr, 0);
  EXPECT_FALSE(WorkerLives(identity));
}

}  // namespace
}  // namespace nibble
