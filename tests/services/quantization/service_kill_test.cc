// SPDX-License-Identifier: Apache-2.0
// Jobs that are interrupted: by kills of the worker, by restarts of the service.
//
// A killed worker loses at most the block it was at; what is committed is never computed again. So
// blocks computed <= blocks + kills, and the events, one for each committed block, name each block
// once.
#include <gmock/gmock.h>

#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "tests/services/quantization/service_fixture.h"

namespace nibble {
namespace {

using ::nibble::testing::kDeepLayers;
using ::nibble::testing::kLayers;
using ::nibble::testing::ServiceTest;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

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

}  // namespace
}  // namespace nibble
