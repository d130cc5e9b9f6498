// SPDX-License-Identifier: Apache-2.0
#include "services/generation/model_registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <map>
#include <mutex>
#include <string>

#include "tests/services/generation/demo_model.h"

namespace nibble {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr milliseconds kGrace{10000};

ModelSpec Spec(const std::string& source, const std::string& kv = "") {
  ModelSpec spec;
  spec.source = source;
  spec.mode = "fast";
  spec.kv_format = kv;
  return spec;
}

class ModelRegistryTest : public ::testing::Test {
 protected:
  using Answer = absl::StatusOr<ServedModelView>;

  // "slow" is found when the test says so, "none" never, everything else is the demo model.
  absl::StatusOr<ModelSource> Resolve(const std::string& source) {
    ++resolved_;
    if (source == "none") return absl::NotFoundError("there is no such source");
    if (source == "slow") released_.wait();
    return ModelSource{DemoModelPath(), "", nullptr, nullptr};
  }
  std::future<Answer> Load(const std::string& name, const ModelSpec& spec) {
    auto promise = std::make_shared<std::promise<Answer>>();
    registry_.Load(name, spec, [promise](const Answer& answer) { promise->set_value(answer); });
    return promise->get_future();
  }
  absl::Status Unload(const std::string& name) {
    std::promise<absl::Status> done;
    registry_.Unload(name, kGrace, [&](const absl::Status& status) { done.set_value(status); });
    return done.get_future().get();
  }
  bool Healthy(const std::string& name) {
    std::lock_guard lock(health_mutex_);
    return health_[name];
  }

  Settings settings_ = TestSettings();
  Metrics metrics_;
  std::promise<void> release_;
  std::shared_future<void> released_ = release_.get_future().share();
  std::atomic<int> resolved_ = 0;
  std::mutex health_mutex_;
  std::map<std::string, bool> health_;
  ModelRegistry registry_{settings_, metrics_,
                          [this](const std::string& source) { return Resolve(source); },
                          [this](const std::string& name, bool serving) {
                            std::lock_guard lock(health_mutex_);
                            health_[name] = serving;
                          }};
};

TEST_F(ModelRegistryTest, AModelServesFromLoadToUnload) {
  const Answer loaded = Load("m", Spec("demo")).get();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->state, ServedState::kServing);
  EXPECT_EQ(loaded->facts.scheme, "bf16");
  EXPECT_TRUE(Healthy("m"));
  EXPECT_TRUE(registry_.Find("m").ok());
  EXPECT_THAT(metrics_.Text(), HasSubstr("nibble_kv_blocks_used{model_name=\"m\",engine=\"0\"} 0"));

  EXPECT_TRUE(Unload("m").ok());
  EXPECT_FALSE(Healthy("m"));
  EXPECT_EQ(registry_.Find("m").status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(registry_.List().empty());
}

TEST_F(ModelRegistryTest, AModelIsServedInEveryKvFormat) {
  for (const KvFormat& format : kKvFormats) {
    const Answer loaded = Load("m", Spec("demo", format.name)).get();
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->facts.kv_format, format.name);
    EXPECT_THAT(metrics_.Text(), HasSubstr("kv_format=\"" + std::string(format.name) + "\""));
    EXPECT_TRUE(Unload("m").ok());
  }
}

TEST_F(ModelRegistryTest, LoadsOfOneNameJoinAndOthersAreTurnedAway) {
  std::future<Answer> first = Load("m", Spec("slow"));
  std::future<Answer> joined = Load("m", Spec("slow"));
  EXPECT_EQ(Load("m", Spec("slow", "int8")).get().status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Load("m", Spec("demo")).get().status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(registry_.Find("m").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(registry_.Get("m")->state, ServedState::kLoading);
  EXPECT_EQ(Unload("m").code(), absl::StatusCode::kAborted);
  release_.set_value();
  EXPECT_TRUE(first.get().ok());
  EXPECT_TRUE(joined.get().ok());
  EXPECT_EQ(resolved_, 1);
  // What serves already is answered at once.
  EXPECT_TRUE(Load("m", Spec("slow")).get().ok());
  EXPECT_EQ(resolved_, 1);
}

TEST_F(ModelRegistryTest, AFailedLoadIsToldAndLeavesTheOldModelServing) {
  const Answer failed = Load("m", Spec("none")).get();
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(registry_.Get("m")->state, ServedState::kFailed);
  EXPECT_EQ(registry_.Get("m")->error, "there is no such source");
  EXPECT_EQ(registry_.Find("m").status().code(), absl::StatusCode::kUnavailable);

  ASSERT_TRUE(Load("m", Spec("demo")).get().ok());
  EXPECT_EQ(registry_.Get("m")->error, "");
  const auto before = registry_.Find("m");
  EXPECT_FALSE(Load("m", Spec("none")).get().ok());
  EXPECT_EQ(registry_.Find("m").value(), before.value());
  EXPECT_EQ(registry_.Get("m")->state, ServedState::kServing);
  EXPECT_EQ(registry_.Get("m")->error, "there is no such source");
}

TEST_F(ModelRegistryTest, AReplacedModelGivesItsMemoryBackWhenItsLastRequestIsDone) {
  ASSERT_TRUE(Load("m", Spec("demo")).get().ok());
  std::shared_ptr<ServedModel> held = registry_.Find("m").value();
  const std::weak_ptr<ServedModel> old = held;
  ASSERT_TRUE(Load("m", Spec("demo", "int8")).get().ok());
  EXPECT_NE(registry_.Find("m").value(), held);
  EXPECT_FALSE(old.expired());
  held.reset();
  for (int i = 0; i < 500 && !old.expired(); ++i) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_TRUE(old.expired());
}

TEST_F(ModelRegistryTest, NoMoreModelsThanTheLimit) {
  settings_.max_models = 1;
  ASSERT_TRUE(Load("a", Spec("demo")).get().ok());
  const Answer refused = Load("b", Spec("demo")).get();
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--max-models"));
  EXPECT_EQ(registry_.List().size(), 1u);
  EXPECT_TRUE(Load("a", Spec("demo", "int8")).get().ok()) << "replacing is no new model";
}

TEST_F(ModelRegistryTest, AFailedLoadTakesNoPlace) {
  settings_.max_models = 1;
  EXPECT_FALSE(Load("a", Spec("none")).get().ok());
  EXPECT_FALSE(Load("b", Spec("none")).get().ok());
  EXPECT_TRUE(Load("c", Spec("demo")).get().ok());
  ASSERT_EQ(registry_.List().size(), 1u);
  EXPECT_EQ(registry_.List()[0].name, "c");
}

class StaleModelRegistryTest : public ModelRegistryTest {
 protected:
  StaleModelRegistryTest() { settings_.stale_step_seconds = -1; }  // every step is too old
};

TEST_F(StaleModelRegistryTest, AStepThatIsTooOldTurnsTheModelsHealth) {
  ASSERT_TRUE(Load("m", Spec("demo")).get().ok());
  for (int i = 0; i < 500 && Healthy("m"); ++i) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_FALSE(Healthy("m"));
  EXPECT_TRUE(registry_.Find("m").ok()) << "it still takes requests";
}

TEST_F(ModelRegistryTest, DrainingRefusesRequestsAndLoads) {
  ASSERT_TRUE(Load("m", Spec("demo")).get().ok());
  std::future<Answer> late = Load("n", Spec("slow"));
  registry_.Drain(milliseconds(0));
  EXPECT_EQ(registry_.Find("m").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Load("o", Spec("demo")).get().status().code(), absl::StatusCode::kUnavailable);
  release_.set_value();
  EXPECT_EQ(late.get().status().code(), absl::StatusCode::kUnavailable);
}

TEST(ValidateModelSpecTest, NamesWhatIsOutOfRange) {
  const auto message = [](auto change) {
    ModelSpec spec = Spec("demo");
    change(spec);
    return std::string(ValidateModelSpec(spec).message());
  };
  EXPECT_EQ(message([](ModelSpec&) {}), "");
  EXPECT_THAT(message([](ModelSpec& s) { s.source = ""; }), HasSubstr("source"));
  EXPECT_EQ(message([](ModelSpec& s) { s.kv_format = "int3"; }),
            "kv_format is \"int3\"; it must be one of f32, bf16, fp8, int8, k8v4, int4");
  EXPECT_THAT(message([](ModelSpec& s) { s.mode = "slow"; }), HasSubstr("slow"));
  EXPECT_THAT(message([](ModelSpec& s) { s.max_context = 15; }), HasSubstr("max_context is 15"));
  EXPECT_THAT(message([](ModelSpec& s) { s.max_running = 257; }), HasSubstr("max_running is 257"));
  EXPECT_THAT(message([](ModelSpec& s) { s.memory_budget_bytes = -1; }),
              HasSubstr("memory_budget_bytes is -1"));
}

}  // namespace
}  // namespace nibble
