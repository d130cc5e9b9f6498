// SPDX-License-Identifier: Apache-2.0
// What a worker does to a job, and what is left when it is killed, stopped or cut off.
#include "services/quantization/worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/artifact/source_files.h"
#include "engine/base/posix_status.h"
#include "kernels/check.h"
#include "services/quantization/publish.h"
#include "services/quantization/sqlite_job_store.h"
#include "services/quantization/sqlite_resource_store.h"
#include "services/quantization/store_schema.h"
#include "services/quantization/supervisor.h"
#include "services/quantization/sweeper.h"
#include "services/quantization/worker_identity.h"
#include "tests/services/quantization/fake_pipeline.h"
#include "tests/support/fault_fs.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int kBlocks = 4;

class WorkerTest : public ::testing::Test {
 protected:
  WorkerTest() {
    MakeFakeModel(models_.path());
    NIBBLE_CHECK(layout_.Create(PosixFileSystem()).ok());
    Open();
  }

  void Open() {
    absl::StatusOr<std::unique_ptr<SqliteDatabase>> database =
        OpenStoreDatabase(layout_.Database());
    NIBBLE_CHECK(database.ok());
    database_ = *std::move(database);
    LeaseOptions options;
    options.lease = lease_;
    options.worker_lives = WorkerLives;
    jobs_ = MakeSqliteJobStore(*database_, clock_, options);
    resources_ = MakeSqliteResourceStore(*database_, clock_);
  }

  void Create(const std::string& id) {
    NewJob job;
    job.id = id;
    job.tenant = "lab";
    job.creator = "alice";
    job.spec = FakeJobSpec();
    job.recipe = "rtn";
    job.scheme = "int4-g128";
    job.source = "model";
    job.artifact_id = absl::StrCat("artifact-", id);
    ASSERT_TRUE(jobs_->CreateJob(job).ok());
  }

  // Runs one attempt in this process.
  bool RunOne(FileSystem& fs = PosixFileSystem()) {
    WorkerOptions options;
    options.layout = layout_;
    options.model_root = models_.path();
    options.identity = WorkerIdentity("here", ::getpid());
    options.disk_full_delay = std::chrono::milliseconds(0);
    options.times.poll = std::chrono::milliseconds(0);
    const Pipeline pipeline = [this](const PipelineSpec& spec, FileSystem& files,
                                     const std::string& work_dir, const std::string& checkpoint_dir,
                                     JobHost& host) {
      if (before_pipeline_) before_pipeline_();
      return RunFakePipeline(fake_, spec, files, work_dir, checkpoint_dir, host);
    };
    const absl::StatusOr<bool> ran =
        Worker(options, *jobs_, *resources_, fs, pipeline, drain_).RunOne();
    return ran.ok() && *ran;
  }

  std::vector<std::string> WorkerArguments(const std::vector<std::string>& more) const {
    std::vector<std::string> arguments = {NIBBLE_TEST_WORKER,
                                          "--data-dir",
                                          layout_.root,
                                          "--model-root",
                                          models_.path(),
                                          "--lease-ms",
                                          absl::StrCat(absl::ToInt64Milliseconds(lease_))};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  // Starts a worker process; its output goes nowhere.
  pid_t Spawn(const std::vector<std::string>& more) const {
    std::vector<std::string> arguments = WorkerArguments(more);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const pid_t pid = ::fork();
    if (pid == 0) {
      NIBBLE_CHECK(freopen("/dev/null", "w", stdout) != nullptr);
      NIBBLE_CHECK(freopen("/dev/null", "w", stderr) != nullptr);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    return pid;
  }
  // Runs one attempt in a process of its own; its wait status.
  int SpawnOnce(int64_t kill_at) const {
    int status = 0;
    ::waitpid(Spawn({"--once", "--name", "child", "--at", absl::StrCat("attempt ", kill_at)}),
              &status, 0);
    return status;
  }

  JobRecord Get(const std::string& id) {
    const absl::StatusOr<JobRecord> job = jobs_->GetJob(id);
    EXPECT_TRUE(job.ok()) << job.status();
    return job.value_or(JobRecord());
  }
  std::vector<std::string> Artifacts() {
    std::vector<std::string> digests;
    const ArtifactPage page = *jobs_->ListArtifacts("", 100, 0);
    for (const ArtifactRecord& artifact : page.artifacts) digests.push_back(artifact.digest);
    return digests;
  }
  int CountBlocks(const std::string& id) {
    const std::vector<JobEventRecord> events = *jobs_->ListEvents(id, 0, 10000);
    return static_cast<int>(std::count_if(
        events.begin(), events.end(),
        [](const JobEventRecord& event) { return event.kind == JobEventKind::kBlockDone; }));
  }
  // The digest of an undisturbed job.
  std::string Reference() {
    Create("reference");
    EXPECT_TRUE(RunOne());
    EXPECT_EQ(Get("reference").state, JobState::kSucceeded);
    return Get("reference").artifact_digest;
  }
  bool Complete(const std::string& digest) {
    const std::string weights = ReadFile(layout_.Artifact(digest) + "/weights");
    return !weights.empty() && ReadFile(layout_.Artifact(digest) + "/report.html") == "<p>fine</p>";
  }
  absl::Status SweepNow() { return Sweep(*jobs_, *resources_, PosixFileSystem(), layout_, clock_); }

  TempDir directory_;
  TempDir models_;
  const DataLayout layout_{directory_.path()};
  absl::Duration lease_ = absl::Seconds(30);
  const Clock clock_;
  std::unique_ptr<SqliteDatabase> database_;
  std::unique_ptr<JobStore> jobs_;
  std::unique_ptr<ResourceStore> resources_;
  FakePipelineOptions fake_;
  std::function<void()> before_pipeline_;
  std::atomic<bool> drain_ = false;
};

TEST_F(WorkerTest, AJobBecomesAnArtifact) {
  Create("a");
  ASSERT_TRUE(RunOne());
  const JobRecord job = Get("a");
  EXPECT_EQ(job.state, JobState::kSucceeded) << job.message;
  EXPECT_EQ(CountBlocks("a"), kBlocks);
  EXPECT_THAT(Artifacts(), ElementsAre(job.artifact_digest));
  EXPECT_TRUE(Complete(job.artifact_digest));
  const ArtifactRecord artifact = *jobs_->GetArtifact("artifact-a");
  EXPECT_EQ(artifact.quality["bits_per_weight"], 4.25);
  EXPECT_DOUBLE_EQ(artifact.quality["perplexity_ratio"], 1.05);
  EXPECT_EQ(artifact.source_digest, job.source_digest);
  EXPECT_FALSE(jobs_->ListLogs("a", 0, 100)->empty());
}

TEST_F(WorkerTest, NothingIsLeftBehindAfterTheSweep) {
  Create("a");
  ASSERT_TRUE(RunOne());
  ASSERT_TRUE(SweepNow().ok());
  EXPECT_THAT(*PosixFileSystem().List(layout_.Job("a")), ElementsAre("report.html"));
  EXPECT_TRUE(Complete(Get("a").artifact_digest));
  ASSERT_TRUE(jobs_->DeleteJob("a").ok());
  ASSERT_TRUE(SweepNow().ok());
  EXPECT_THAT(*PosixFileSystem().List(layout_.Jobs()), IsEmpty());
  EXPECT_TRUE(Complete(*PosixFileSystem().List(layout_.Artifacts())->begin()))
      << "it outlives its job";
}

TEST_F(WorkerTest, TheSweepLeavesWhatALiveLeaseAndCheckpointsNeed) {
  const std::string reference = Reference();
  Create("a");
  fake_.fails_after = 2;
  ASSERT_TRUE(RunOne());
  const std::string left_over = layout_.Attempt("a", 1) + "/left-over";
  const std::string in_use = layout_.Attempt("a", 2) + "/in-use";
  WriteFile(left_over, "nobody's");
  fake_.fails_after = -1;
  before_pipeline_ = [&] {
    WriteFile(in_use, "the attempt's");
    ASSERT_TRUE(SweepNow().ok());
  };
  ASSERT_TRUE(RunOne());
  EXPECT_EQ(ReadFile(left_over), "");
  EXPECT_EQ(ReadFile(in_use), "the attempt's");
  EXPECT_EQ(CountBlocks("a"), kBlocks) << "the first attempt's blocks were there";
  EXPECT_EQ(Get("a").artifact_digest, reference);
}

TEST_F(WorkerTest, AFailedGateKeepsTheReportAndPublishesNothing) {
  fake_.gate_passed = false;
  Create("a");
  ASSERT_TRUE(RunOne());
  EXPECT_EQ(Get("a").reason, JobReason::kGateFailed);
  EXPECT_THAT(Get("a").message, HasSubstr("kl"));
  EXPECT_THAT(*jobs_->GetReport("a"), HasSubstr("bits_per_weight"));
  EXPECT_THAT(Artifacts(), IsEmpty());
  ASSERT_TRUE(SweepNow().ok());
  EXPECT_EQ(ReadFile(layout_.ReportHtml("a")), "<p>fine</p>");
  EXPECT_THAT(*PosixFileSystem().List(layout_.Artifacts()), IsEmpty());
}

TEST_F(WorkerTest, ASourceThatChangesBetweenAttemptsFailsTheJob) {
  Create("a");
  before_pipeline_ = [this] { drain_ = true; };
  ASSERT_TRUE(RunOne());
  EXPECT_EQ(Get("a").state, JobState::kQueued);
  MakeFakeModel(models_.path(), "other weights");
  before_pipeline_ = nullptr;
  drain_ = false;
  ASSERT_TRUE(RunOne());
  EXPECT_EQ(Get("a").state, JobState::kFailed);
  EXPECT_EQ(Get("a").reason, JobReason::kSourceChanged);
}

TEST_F(WorkerTest, ASourceOutsideTheRootIsNotRead) {
  std::filesystem::remove_all(models_.File("model"));
  TempDir elsewhere;
  MakeFakeModel(elsewhere.path());
  std::filesystem::create_directory_symlink(elsewhere.File("model"), models_.File("model"));
  Create("a");
  ASSERT_TRUE(RunOne());
  EXPECT_EQ(Get("a").reason, JobReason::kInvalidInput);
  EXPECT_THAT(Get("a").message, HasSubstr("leads out"));
}

TEST_F(WorkerTest, ALinkWithinTheRootIsFollowed) {
  std::filesystem::rename(models_.File("model"), models_.File("blobs"));
  std::filesystem::create_directory_symlink("blobs", models_.File("model"));
  Create("a");
  ASSERT_TRUE(RunOne());
  EXPECT_EQ(Get("a").state, JobState::kSucceeded) << Get("a").message;
}

TEST_F(WorkerTest, CancelStopsWithinABlock) {
  Create("a");
  fake_.blocks = 1000;
  before_pipeline_ = [this] { ASSERT_TRUE(jobs_->RequestCancel("a").ok()); };
  ASSERT_TRUE(RunOne());
  EXPECT_EQ(Get("a").state, JobState::kCancelled);
  EXPECT_EQ(CountBlocks("a"), 0);
}

TEST_F(WorkerTest, ADrainedWorkerHandsTheJobBackAndTheNextOneGoesOn) {
  const std::string reference = Reference();
  Create("a");
  for (int round = 0; round < 2 * kMaxIdleAttempts; ++round) {
    before_pipeline_ = [this] { drain_ = true; };
    ASSERT_TRUE(RunOne());
    drain_ = false;
    EXPECT_EQ(Get("a").state, JobState::kQueued) << "drains do not count";
  }
  before_pipeline_ = nullptr;
  ASSERT_TRUE(RunOne());
  EXPECT_EQ(Get("a").artifact_digest, reference);
}

TEST_F(WorkerTest, AFullDiskPausesTheJobWithAReason) {
  const std::string reference = Reference();
  Create("a");
  FaultFileSystem fs(layout_.root);
  // The fourth change is in the first block.
  fs.Fail(4, ErrnoStatus(ENOSPC, "write", "block-0"));
  for (int round = 0; round < kMaxIdleAttempts + 1; ++round) {
    ASSERT_TRUE(RunOne(fs));
    EXPECT_EQ(Get("a").state, JobState::kQueued);
    EXPECT_THAT(Get("a").pause_reason, HasSubstr("No space left"));
  }
  fs.StopFailing();
  ASSERT_TRUE(RunOne(fs));
  EXPECT_EQ(Get("a").artifact_digest, reference);
}

TEST_F(WorkerTest, ADiskThatIsFullWhenItPublishesPausesTheJobToo) {
  const std::string reference = Reference();
  ASSERT_TRUE(jobs_->DeleteArtifact("artifact-reference").ok());
  ASSERT_TRUE(SweepNow().ok());
  Create("a");
  FaultFileSystem counting(layout_.root);
  ASSERT_TRUE(RunOne(counting));
  const std::vector<std::string> log = counting.log();
  const auto rename = std::find_if(log.begin(), log.end(), [](const std::string& operation) {
    return operation.compare(0, 7, "rename ") == 0;
  });
  ASSERT_NE(rename, log.end());
  ASSERT_TRUE(jobs_->DeleteArtifact("artifact-a").ok());
  ASSERT_TRUE(SweepNow().ok());

  Create("b");
  FaultFileSystem fs(layout_.root);
  fs.Fail(rename - log.begin(), ErrnoStatus(EDQUOT, "rename", "artifact"));
  ASSERT_TRUE(RunOne(fs));
  EXPECT_EQ(Get("b").state, JobState::kQueued);
  EXPECT_THAT(Get("b").pause_reason, HasSubstr("quota"));
  EXPECT_THAT(Artifacts(), IsEmpty());
  fs.StopFailing();
  ASSERT_TRUE(RunOne(fs));
  EXPECT_EQ(Get("b").artifact_digest, reference);
  EXPECT_EQ(CountBlocks("b"), kBlocks);
}

TEST_F(WorkerTest, ShortMemoryIsNoPauseAndCounts) {
  Create("a");
  FaultFileSystem fs(layout_.root);
  fs.Fail(4, absl::ResourceExhaustedError("cpu memory: 123 bytes wanted"));
  for (int round = 1; round <= kMaxIdleAttempts; ++round) {
    EXPECT_EQ(Get("a").state, JobState::kQueued);
    EXPECT_EQ(Get("a").pause_reason, "");
    ASSERT_TRUE(RunOne(fs));
    EXPECT_EQ(Get("a").idle_attempts, round);
    EXPECT_THAT(Get("a").message, HasSubstr("123 bytes wanted"));
  }
  EXPECT_EQ(Get("a").state, JobState::kFailed);
  EXPECT_EQ(Get("a").reason, JobReason::kAttemptsExhausted);
}

TEST_F(WorkerTest, ADamagedCheckpointCostsABlockNotTheJob) {
  const std::string reference = Reference();
  Create("a");
  before_pipeline_ = [this] {
    const Lease lease{"a", Get("a").attempt};
    const std::string dir = layout_.Attempt("a", lease.attempt);
    WriteFile(dir + "/block-9", "not what was named");
    ASSERT_TRUE(jobs_
                    ->CommitCheckpoint(
                        lease, {2, {"attempt-1/block-9"}, {std::string(64, '0')}, {"", fake_.tier}})
                    .ok());
    drain_ = true;
  };
  ASSERT_TRUE(RunOne());
  before_pipeline_ = nullptr;
  drain_ = false;
  ASSERT_TRUE(RunOne());
  EXPECT_EQ(Get("a").artifact_digest, reference);
}

TEST_F(WorkerTest, BlocksOfAnotherTierDoNotMakeNewOnesIdle) {
  const std::string reference = Reference();
  Create("a");
  fake_.fails_after = kBlocks - 1;
  ASSERT_TRUE(RunOne());
  fake_.tier = "tier-b";
  fake_.fails_after = 1;
  for (int round = 0; round < kBlocks - 1; ++round) {
    ASSERT_TRUE(RunOne());
    EXPECT_EQ(Get("a").state, JobState::kQueued) << Get("a").message;
    EXPECT_EQ(Get("a").idle_attempts, 0);
  }
  fake_.fails_after = -1;
  ASSERT_TRUE(RunOne());
  EXPECT_EQ(Get("a").artifact_digest, reference);
  EXPECT_EQ(CountBlocks("a"), kBlocks - 1 + kBlocks);
}

TEST_F(WorkerTest, EachAttemptGivesThePipelineTheDigestThatTheStoreHas) {
  Create("a");
  std::vector<std::string> digests;  // in the store when the pipeline begins
  before_pipeline_ = [&] {
    digests.push_back(Get("a").source_digest);
    drain_ = digests.size() == 1;
  };
  ASSERT_TRUE(RunOne());
  drain_ = false;
  ASSERT_TRUE(RunOne());
  const std::string digest = *SourceDigest(models_.File("model"));
  EXPECT_THAT(digests, ElementsAre(digest, digest)) << "recorded before the work begins";
  EXPECT_EQ(Get("a").state, JobState::kSucceeded);
}

TEST_F(WorkerTest, TwoJobsWithTheSameContentsShareADirectory) {
  const std::string reference = Reference();
  Create("a");
  ASSERT_TRUE(RunOne());
  EXPECT_EQ(Get("a").state, JobState::kSucceeded);
  EXPECT_THAT(Artifacts(), ElementsAre(reference, reference));
  EXPECT_THAT(*PosixFileSystem().List(layout_.Artifacts()), SizeIs(1));
}

// ---- interruptions ----

TEST_F(WorkerTest, KilledAtEveryStepTheJobEndsWithTheSameArtifact) {
  const std::string reference = Reference();
  int kills = 0;
  for (int64_t at = 0;; ++at) {
    const std::string id = absl::StrCat("k", at);
    Create(id);
    const int status = SpawnOnce(at);
    if (WIFEXITED(status)) {
      ASSERT_EQ(WEXITSTATUS(status), 0);
      break;  // it has no more steps than that
    }
    ASSERT_EQ(WTERMSIG(status), SIGKILL);
    ++kills;
    const std::vector<std::string> listed = Artifacts();
    for (const std::string& digest : listed) ASSERT_TRUE(Complete(digest)) << "at " << at;
    // As the service does: what was publishing is completed, what was running is put back.
    ASSERT_TRUE(jobs_->ReclaimFrom("child", "signal 9").ok());
    ASSERT_TRUE(CompletePublishes(*jobs_, PosixFileSystem(), layout_, "service").ok());
    ASSERT_TRUE(SweepNow().ok());
    if (Get(id).state == JobState::kQueued) {
      ASSERT_TRUE(RunOne());
    }
    ASSERT_EQ(Get(id).state, JobState::kSucceeded) << "killed at " << at << ": " << Get(id).message;
    ASSERT_EQ(Get(id).artifact_digest, reference) << "killed at " << at;
    ASSERT_LE(CountBlocks(id), kBlocks + 1) << "killed at " << at;
    // The next round starts without the directory, so that its rename is a real one.
    ASSERT_TRUE(jobs_->DeleteArtifact(absl::StrCat("artifact-", id)).ok());
    if (at == 0) {
      ASSERT_TRUE(jobs_->DeleteArtifact("artifact-reference").ok());
    }
    ASSERT_TRUE(SweepNow().ok());
  }
  EXPECT_GT(kills, 6 * kBlocks);
}

TEST_F(WorkerTest, AWorkerStoppedPastItsLeaseChangesNothingWhenItWakes) {
  lease_ = absl::Milliseconds(600);
  Open();
  const std::string reference = Reference();
  Create("a");
  // Stops itself somewhere in the second block.
  const pid_t child = Spawn({"--once", "--name", "sleeper", "--at", "block 4", "--stop"});
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  ASSERT_TRUE(WIFSTOPPED(status));
  ASSERT_EQ(Get("a").state, JobState::kRunning);
  std::this_thread::sleep_for(std::chrono::milliseconds(700));
  ASSERT_TRUE(RunOne());
  ASSERT_EQ(Get("a").state, JobState::kSucceeded) << Get("a").message;
  EXPECT_EQ(Get("a").leases_lost, 1);
  const int64_t before = *jobs_->LastSequence();
  const std::string weights = ReadFile(layout_.Artifact(reference) + "/weights");

  ASSERT_EQ(::kill(child, SIGCONT), 0);
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "it noticed and ended in order";
  EXPECT_EQ(*jobs_->LastSequence(), before) << "not one event";
  EXPECT_EQ(Get("a").attempt, 2);
  EXPECT_EQ(ReadFile(layout_.Artifact(reference) + "/weights"), weights);
  EXPECT_THAT(Artifacts(), ElementsAre(reference, reference));
}

TEST_F(WorkerTest, PublishInterruptedAtEveryFileOperationNeverListsAPartialArtifact) {
  const std::string reference = Reference();
  ASSERT_TRUE(jobs_->DeleteArtifact("artifact-reference").ok());
  ASSERT_TRUE(SweepNow().ok());
  for (int64_t at = 0;; ++at) {
    const std::string id = absl::StrCat("p", at);
    Create(id);
    FaultFileSystem fs(layout_.root);
    fs.Fail(at, absl::InternalError("input/output error"));
    ASSERT_TRUE(RunOne(fs));
    const bool untouched = fs.operations() <= at;
    fs.Crash();  // and a power cut: what was not synced is gone
    fs.StopFailing();
    std::vector<std::string> listed = Artifacts();
    for (const std::string& digest : listed) ASSERT_TRUE(Complete(digest)) << "at " << at;
    ASSERT_TRUE(jobs_->ReclaimFrom("here", "power cut").ok());
    ASSERT_TRUE(CompletePublishes(*jobs_, fs, layout_, "service").ok());
    for (int round = 0; round < 2 && Get(id).state == JobState::kQueued; ++round) RunOne(fs);
    ASSERT_EQ(Get(id).state, JobState::kSucceeded) << "failed at " << at << ": " << Get(id).message;
    ASSERT_EQ(Get(id).artifact_digest, reference) << "failed at " << at;
    ASSERT_TRUE(Complete(reference)) << "failed at " << at;
    ASSERT_TRUE(jobs_->DeleteArtifact(absl::StrCat("artifact-", id)).ok());
    ASSERT_TRUE(SweepNow().ok());
    if (untouched) break;
  }
}

// ---- supervision ----

class SupervisorTest : public WorkerTest {
 protected:
  SupervisorOptions Options(const std::vector<std::string>& more = {}) {
    SupervisorOptions options;
    options.command = WorkerArguments(more);
    options.first_backoff = std::chrono::milliseconds(10);
    return options;
  }
  bool WaitFor(const std::function<bool()>& condition) {
    for (int i = 0; i < 1500; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }
};

TEST_F(SupervisorTest, AKilledWorkerIsReplacedAndItsJobGoesOn) {
  const std::string reference = Reference();
  Supervisor supervisor(Options({"--block-ms", "200"}), *jobs_);
  Create("a");
  ASSERT_TRUE(WaitFor([&] { return CountBlocks("a") >= 2; }));
  const std::vector<pid_t> pids = supervisor.pids();
  ASSERT_THAT(pids, SizeIs(1));
  ASSERT_EQ(::kill(pids[0], SIGKILL), 0);
  ASSERT_TRUE(WaitFor([&] { return Get("a").state == JobState::kSucceeded; })) << Get("a").message;
  EXPECT_EQ(Get("a").attempt, 2) << "put back at once, not when the lease had run out";
  EXPECT_EQ(Get("a").artifact_digest, reference);
  EXPECT_LE(CountBlocks("a"), kBlocks + 1);
  EXPECT_EQ(supervisor.restarts(), 1);
}

TEST_F(SupervisorTest, StoppingHandsTheJobBack) {
  Supervisor supervisor(Options({"--block-ms", "100", "--blocks", "1000"}), *jobs_);
  Create("a");
  ASSERT_TRUE(WaitFor([&] { return CountBlocks("a") >= 1; }));
  supervisor.Stop();
  EXPECT_THAT(supervisor.pids(), IsEmpty());
  EXPECT_EQ(Get("a").state, JobState::kQueued);
  EXPECT_EQ(Get("a").idle_attempts, 0);
}

TEST_F(SupervisorTest, AJobThatKillsItsWorkersIsGivenUp) {
  Supervisor supervisor(Options({"--at", "attempt 0"}), *jobs_);
  Create("a");
  ASSERT_TRUE(WaitFor([&] { return Get("a").state == JobState::kFailed; }));
  EXPECT_EQ(Get("a").reason, JobReason::kAttemptsExhausted);
  EXPECT_EQ(Get("a").attempt, kMaxIdleAttempts);
  EXPECT_THAT(Get("a").message, HasSubstr("signal 9"));
}

}  // namespace
}  // namespace nibble
