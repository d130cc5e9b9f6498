// SPDX-License-Identifier: Apache-2.0
// The job store as a specification: attempts, from the lease to the publication.
#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "tests/services/quantization/job_store_fixture.h"

namespace nibble {
namespace {

using ::nibble::testing::JobStoreTest;
using ::nibble::testing::kDigest;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

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

}  // namespace
}  // namespace nibble
