// SPDX-License-Identifier: Apache-2.0
// Whole jobs on a tiny random model: every recipe, every kind of interruption, every kind of error.
#include "engine/quant/pipeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "engine/artifact/checkpoint.h"
#include "engine/artifact/manifest.h"
#include "engine/artifact/source_files.h"
#include "engine/base/posix_status.h"
#include "tests/engine/quant/test_host.h"
#include "tests/support/fault_fs.h"
#include "tests/support/shared_data.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::TestHost;
using testing::TinyModel;
using testing::TinyModelOptions;

namespace stdfs = std::filesystem;

class PipelineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    MakeModel({});
    TinyModel::WriteIds(dir_.File("calibration.jsonl"), 8, 31, 5);
    TinyModel::WriteIds(dir_.File("heldout.jsonl"), 3, 40, 6);
  }

  void MakeModel(const TinyModelOptions& options) {
    stdfs::remove_all(dir_.File("model"));
    TinyModel(dir_.File("model"), options);
  }

  PipelineSpec Spec(std::string_view recipe) {
    PipelineSpec spec;
    spec.model_path = dir_.File("model");
    spec.recipe = *BuiltinRecipe(recipe);
    if (spec.recipe.scheme == "int4-g128") spec.recipe.scheme = "int4-g32";
    spec.calibration_path = dir_.File("calibration.jsonl");
    spec.calibration_samples = 8;
    spec.calibration_length = 32;
    return spec;
  }

  // One attempt with a work directory of its own.
  absl::StatusOr<PipelineResult> Attempt(PipelineSpec spec, TestHost& host,
                                         FileSystem& fs = PosixFileSystem(), int threads = 1,
                                         const std::string& tier = "") {
    spec.threads = threads;
    auto backend = MakeCpuBackend({threads, tier});
    EXPECT_TRUE(backend.ok()) << backend.status();
    const std::string job = dir_.File("job");
    const std::string work = job + "/attempt-" + std::to_string(++attempts_);
    stdfs::create_directories(work);
    host.last_fraction = 0;
    return RunPipeline(spec, **backend, fs, work, job, host);
  }

  PipelineResult Undisturbed(const PipelineSpec& spec, int threads = 1) {
    TestHost host;
    absl::StatusOr<PipelineResult> result = Attempt(spec, host, PosixFileSystem(), threads);
    EXPECT_TRUE(result.ok()) << result.status();
    return *std::move(result);
  }

  std::string ErrorOf(const PipelineSpec& spec, absl::StatusCode code) {
    TestHost host;
    const absl::StatusOr<PipelineResult> result = Attempt(spec, host);
    EXPECT_EQ(result.status().code(), code) << result.status();
    return std::string(result.status().message());
  }

  // Flips one byte in the middle of a file that a checkpoint names.
  void Damage(const std::string& name) {
    const std::string path = dir_.File("job") + "/" + name;
    std::string bytes = ReadFile(path);
    ASSERT_FALSE(bytes.empty()) << path;
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
    WriteFile(path, bytes);
  }

  TempDir dir_;
  int attempts_ = 0;
};

// ---- What comes out ----------------------------------------------------------------------------

TEST_F(PipelineTest, EveryRecipeMakesAnArtifactThatTheReaderOpens) {
  for (const std::string_view name : BuiltinRecipeNames()) {
    PipelineSpec spec = Spec(name);
    spec.eval_path = dir_.File("heldout.jsonl");
    TestHost host;
    const absl::StatusOr<PipelineResult> result = Attempt(spec, host);
    ASSERT_TRUE(result.ok()) << name << ": " << result.status();
    EXPECT_EQ(result->blocks_computed, 3);
    EXPECT_EQ(host.commits, 3);
    EXPECT_TRUE(result->gate_passed);
    const auto artifact = Checkpoint::Open(result->artifact_dir);
    ASSERT_TRUE(artifact.ok()) << artifact.status();
    const auto weight = (*artifact)->Weight("model.layers.2.mlp.down_proj");
    ASSERT_TRUE(weight.ok()) << weight.status();
    EXPECT_EQ(weight->scheme->name, spec.recipe.scheme);
    EXPECT_EQ(*VerifyArtifact(result->artifact_dir), result->digest);

    const nlohmann::json& report = result->report;
    EXPECT_EQ(report["modules"].size(), 22u);  // 3 blocks of 7, and the embedding
    for (const nlohmann::json& module : report["modules"]) {
      EXPECT_LT(module["relative_error"].get<double>(), 0.05) << name << " " << module;
    }
    // int4-g32: a 16-bit scale per 32 weights, and 16 bytes that say the shape.
    const bool bytes = spec.recipe.scheme == "w8a8";
    EXPECT_NEAR(report["bits_per_weight"].get<double>(), bytes ? 8.2 : 4.52, 0.05) << name;
    for (const char* mode : {"exact", "fast"}) {
      EXPECT_GT(report["evaluation"][mode]["kl"].get<double>(), 0) << name;
      EXPECT_LT(report["evaluation"][mode]["kl"].get<double>(), 0.5) << name;
      EXPECT_EQ(report["evaluation"][mode]["predictions"].get<int>(), 120) << name;
    }
    EXPECT_EQ(nlohmann::json::parse(ReadFile(result->artifact_dir + "/report.json")), report);
    EXPECT_THAT(ReadFile(result->artifact_dir + "/report.html"), HasSubstr("mlp.down_proj"));
    EXPECT_THAT(host.progress, Contains(Field(&PipelineProgress::phase, "quantize")));
  }
}

TEST_F(PipelineTest, OutliersAreCalibratedPerInputAndReported) {
  for (const char* recipe : {"rtn", "gptq", "awq"}) {
    PipelineSpec spec = Spec(recipe);
    spec.recipe.scheme = "llm-int8";
    spec.recipe.overrides = {{"layers.1.self_attn.k_proj", "w8a8"},
                             {"layers.1.self_attn.v_proj", "fp8"}};
    spec.recipe.true_sequential = recipe != std::string("gptq");
    const PipelineResult result = Undisturbed(spec);
    const auto artifact = Checkpoint::Open(result.artifact_dir);
    ASSERT_TRUE(artifact.ok()) << artifact.status();
    for (const nlohmann::json& module : result.report["modules"]) {
      const auto name = module["module"].get<std::string>();
      const WeightView view = *(*artifact)->Weight(name);
      EXPECT_EQ(module["outliers"].get<int64_t>(), view.outliers) << name;
      EXPECT_LT(module["relative_error"].get<double>(), 0.01) << name;
    }
    const WeightView q = *(*artifact)->Weight("model.layers.0.self_attn.q_proj");
    ASSERT_EQ(q.outliers, 4) << "one in 16 of the five that a large gain makes so";
    const WeightView v = *(*artifact)->Weight("model.layers.0.self_attn.v_proj");
    EXPECT_TRUE(std::equal(q.outlier_features, q.outlier_features + 4, v.outlier_features));
    for (int i = 0; i < 4; ++i) EXPECT_EQ(q.outlier_features[i] % 13, 4);
    EXPECT_THAT(ReadFile(result.artifact_dir + "/report.html"), HasSubstr("llm-int8, 4 outliers"));
  }
}

TEST_F(PipelineTest, BeyondEveryActivationTheThresholdLeavesW8A8) {
  PipelineSpec spec = Spec("rtn");
  spec.recipe.scheme = "w8a8";
  spec.eval_path = dir_.File("heldout.jsonl");
  const PipelineResult plain = Undisturbed(spec);
  spec.recipe.scheme = "llm-int8";
  const PipelineResult split = Undisturbed(spec);
  spec.recipe.llm_int8.threshold = 1e30;
  const PipelineResult none = Undisturbed(spec);
  const auto kl = [](const PipelineResult& result) {
    return result.report["evaluation"]["fast"]["kl"].get<double>();
  };
  EXPECT_EQ(kl(none), kl(plain));
  EXPECT_LT(kl(split), 0.9 * kl(plain));
}

TEST_F(PipelineTest, CalibratedRecipesMoveTheOutputsLessThanRoundingToNearest) {
  std::map<std::string, double> kl;
  for (const char* name : {"rtn", "gptq", "awq", "awq-gptq"}) {
    PipelineSpec spec = Spec(name);
    spec.eval_path = dir_.File("heldout.jsonl");
    kl[name] = Undisturbed(spec).report["evaluation"]["exact"]["kl"].get<double>();
  }
  EXPECT_LT(kl["gptq"], 0.8 * kl["rtn"]);
  EXPECT_LT(kl["awq"], 0.9 * kl["rtn"]);
  EXPECT_LT(kl["awq-gptq"], 0.8 * kl["rtn"]);
}

TEST_F(PipelineTest, AnUnquantizedSchemeKeepsTheModel) {
  PipelineSpec spec = Spec("rtn");
  spec.recipe.scheme = "bf16";
  spec.eval_path = dir_.File("heldout.jsonl");
  const PipelineResult result = Undisturbed(spec);
  EXPECT_EQ(result.report["bits_per_weight"].get<double>(), 16);
  EXPECT_EQ(result.report["evaluation"]["exact"]["kl"].get<double>(), 0.0);
  EXPECT_EQ(result.report["evaluation"]["exact"]["same_top"].get<double>(), 1.0);
  EXPECT_EQ(result.report["evaluation"]["exact"]["perplexity"],
            result.report["evaluation"]["baseline"]["perplexity"]);
}

TEST_F(PipelineTest, ATiedHeadIsUntiedOnlyWhereItsSchemeDiffers) {
  PipelineSpec spec = Spec("rtn");
  const auto tied = Checkpoint::Open(Undisturbed(spec).artifact_dir);
  ASSERT_TRUE(tied.ok());
  EXPECT_FALSE((*tied)->HasWeight("lm_head"));
  spec.recipe.head_scheme = "int8";
  spec.recipe.embedding_scheme = "int4-g32";
  const auto untied = Checkpoint::Open(Undisturbed(spec).artifact_dir);
  ASSERT_TRUE(untied.ok());
  EXPECT_EQ((*untied)->Weight("lm_head")->scheme->name, "int8");
  EXPECT_EQ((*untied)->Weight("model.embed_tokens")->scheme->name, "int4-g32");
  EXPECT_EQ((*untied)->config().at("tie_word_embeddings"), false);
}

TEST_F(PipelineTest, OverridesChooseSchemesByModule) {
  PipelineSpec spec = Spec("gptq");
  spec.recipe.overrides = {{"layers.1.*", "int8"}, {"*.v_proj", "bf16"}};
  const auto artifact = Checkpoint::Open(Undisturbed(spec).artifact_dir);
  ASSERT_TRUE(artifact.ok()) << artifact.status();
  EXPECT_EQ((*artifact)->Weight("model.layers.0.mlp.up_proj")->scheme->name, "int4-g32");
  EXPECT_EQ((*artifact)->Weight("model.layers.1.mlp.up_proj")->scheme->name, "int8");
  EXPECT_EQ((*artifact)->Weight("model.layers.1.self_attn.v_proj")->scheme->name, "bf16");
}

TEST_F(PipelineTest, TheGateHoldsBothModesAgainstItsBoundsAndKeepsTheReport) {
  PipelineSpec spec = Spec("rtn");
  spec.eval_path = dir_.File("heldout.jsonl");
  spec.gate.max_kl = 1e-9;
  const PipelineResult failed = Undisturbed(spec);
  EXPECT_FALSE(failed.gate_passed);
  EXPECT_THAT(failed.gate_message,
              AllOf(HasSubstr("KL"), HasSubstr("(exact)"), HasSubstr("(fast)")));
  EXPECT_EQ(failed.report["gate"]["passed"], false);
  EXPECT_THAT(ReadFile(failed.artifact_dir + "/report.html"), HasSubstr("Gate failed"));
  spec.gate.max_kl = 5;
  spec.gate.min_same_top = 0.1;
  EXPECT_TRUE(Undisturbed(spec).gate_passed);
}

TEST_F(PipelineTest, WithoutAHeldOutTextItIsJudgedByWhatTheSamplesLeaveOver) {
  PipelineSpec spec = Spec("gptq");
  spec.calibration_samples = 5;  // of 8 texts of 31 tokens, each a sample
  spec.gate.max_kl = 5;
  PipelineResult result = Undisturbed(spec);
  EXPECT_TRUE(result.gate_passed);
  EXPECT_EQ(result.report["evaluation"]["exact"]["predictions"].get<int>(), 3 * 31);
  spec.calibration_samples = 8;
  EXPECT_THAT(ErrorOf(spec, absl::StatusCode::kInvalidArgument),
              AllOf(HasSubstr("gate"), HasSubstr("8 calibration samples take all")));
  spec.gate = {};
  EXPECT_FALSE(Undisturbed(spec).report.contains("evaluation"));
  spec.recipe = Spec("rtn").recipe;  // takes no samples
  EXPECT_EQ(Undisturbed(spec).report["evaluation"]["exact"]["predictions"].get<int>(), 8 * 31);
}

TEST_F(PipelineTest, StringsInTheReportPageAreEscaped) {
  PipelineSpec spec = Spec("rtn");
  spec.recipe.name = "<script>alert('x')</script>&";
  const std::string page = ReadFile(Undisturbed(spec).artifact_dir + "/report.html");
  EXPECT_THAT(page, Not(HasSubstr("<script")));
  EXPECT_THAT(page, HasSubstr("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;"));
}

TEST_F(PipelineTest, Stories260kIsQuantizedFromItsDirectoryAndFromItsGgufFile) {
  const std::string data = SharedDataDirectory();
  if (data.empty()) GTEST_SKIP() << "needs the shared data directory";
  PipelineSpec spec = Spec("gptq");
  spec.recipe.scheme = "int4-g32";
  spec.recipe.overrides = {{"*.down_proj", "int8"}};  // 172 inputs are no multiple of 32
  spec.calibration_path = data + "/text/tinystories_1000.json";
  spec.eval_path = spec.calibration_path;
  spec.calibration_length = 128;
  spec.eval_max_tokens = 4000;
  for (const char* model : {"/models/stories260K", "/models/stories260K/stories260Ktok512.gguf"}) {
    spec.model_path = data + model;
    const nlohmann::json report = Undisturbed(spec).report;
    EXPECT_NEAR(report["evaluation"]["baseline"]["nll"].get<double>(), 1.5, 0.3) << model;
    EXPECT_LT(report["evaluation"]["exact"]["kl"].get<double>(), 0.1) << model;
    EXPECT_LT(report["evaluation"]["fast"]["kl"].get<double>(), 0.1) << model;
  }
}

// ---- The same bits -----------------------------------------------------------------------------

TEST_F(PipelineTest, TheDigestDoesNotDependOnThreadsOrOnWhereActivationsLie) {
  PipelineSpec spec = Spec("awq-gptq");
  const std::string digest = Undisturbed(spec, 1).digest;
  EXPECT_EQ(Undisturbed(spec, 2).digest, digest);
  EXPECT_EQ(Undisturbed(spec, 7).digest, digest);
  spec.activation_budget_bytes = 0;  // spilled
  EXPECT_EQ(Undisturbed(spec, 2).digest, digest);
}

TEST_F(PipelineTest, EvaluationDoesNotChangeTheDigest) {
  PipelineSpec spec = Spec("rtn");
  const std::string digest = Undisturbed(spec).digest;
  spec.eval_path = dir_.File("heldout.jsonl");
  EXPECT_EQ(Undisturbed(spec).digest, digest);
}

TEST_F(PipelineTest, StoppedAfterEveryBlockItGoesOnThereAndGivesTheSameDigest) {
  for (const char* name : {"rtn", "gptq", "smoothquant-gptq"}) {
    const PipelineSpec spec = Spec(name);
    const std::string digest = Undisturbed(spec).digest;
    TestHost host;

    for (int block = 1; block <= 3; ++block) {
      host.stop_after_commits = block;
      EXPECT_EQ(Attempt(spec, host).status().code(), absl::StatusCode::kAborted);
      EXPECT_EQ(host.commits, block) << name;
    }
    host.stop_after_commits = std::numeric_limits<int>::max();
    const absl::StatusOr<PipelineResult> result = Attempt(spec, host);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->resumed_at, 3);
    EXPECT_EQ(result->blocks_computed, 0);
    EXPECT_EQ(result->digest, digest) << name;
  }
}

TEST_F(PipelineTest, StoppedAtAnyMomentItGivesTheSameDigest) {
  const PipelineSpec spec = Spec("gptq");
  TestHost counting;
  const absl::StatusOr<PipelineResult> whole = Attempt(spec, counting);
  ASSERT_TRUE(whole.ok()) << whole.status();
  for (int moment = 1; moment < counting.asked; moment += 1 + counting.asked / 12) {
    TestHost host;
    host.stop_after_asked = moment;
    EXPECT_EQ(Attempt(spec, host).status().code(), absl::StatusCode::kAborted);
    const int before = host.commits;
    host.stop_after_asked = std::numeric_limits<int>::max();
    const absl::StatusOr<PipelineResult> result = Attempt(spec, host);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->digest, whole->digest) << "stopped at " << moment;
    EXPECT_EQ(result->resumed_at, before);
    EXPECT_EQ(result->blocks_computed, 3 - before);
  }
}

TEST_F(PipelineTest, ADamagedFileCostsOneBlock) {
  const PipelineSpec spec = Spec("gptq");
  const std::string digest = Undisturbed(spec).digest;
  for (const size_t file : {size_t{0}, size_t{1}}) {  // the block, its activations
    TestHost host;
    host.stop_after_commits = 2;
    EXPECT_EQ(Attempt(spec, host).status().code(), absl::StatusCode::kAborted);
    Damage(host.checkpoints[1].files[file]);
    host.stop_after_commits = std::numeric_limits<int>::max();
    const absl::StatusOr<PipelineResult> result = Attempt(spec, host);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->resumed_at, 1);
    EXPECT_EQ(result->blocks_computed, 2);
    EXPECT_EQ(result->digest, digest);
    EXPECT_THAT(host.log, Contains(HasSubstr("cannot be used")));
  }
}

TEST_F(PipelineTest, WithTheFirstBlockDamagedItStartsOver) {
  const PipelineSpec spec = Spec("gptq");
  TestHost host;
  host.stop_after_commits = 2;
  EXPECT_EQ(Attempt(spec, host).status().code(), absl::StatusCode::kAborted);
  Damage(host.checkpoints[0].files[0]);
  host.stop_after_commits = std::numeric_limits<int>::max();
  const absl::StatusOr<PipelineResult> result = Attempt(spec, host);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->resumed_at, 0);
  EXPECT_EQ(result->digest, Undisturbed(spec).digest);
}

TEST_F(PipelineTest, BlocksOfAnotherRecipeOrTierAreNotUsed) {
  TestHost host;
  host.stop_after_commits = 2;
  EXPECT_EQ(Attempt(Spec("rtn"), host, PosixFileSystem(), 1, "scalar").status().code(),
            absl::StatusCode::kAborted);
  host.stop_after_commits = std::numeric_limits<int>::max();
  absl::StatusOr<PipelineResult> result = Attempt(Spec("mse"), host);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->resumed_at, 0);
  EXPECT_THAT(host.log, Contains(HasSubstr("starting over")));
  if ((*MakeCpuBackend({1, ""}))->Tier() == "cpu/scalar") return;  // there is no other tier
  host.checkpoints.resize(2);
  host.log.clear();
  result = Attempt(Spec("rtn"), host);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->resumed_at, 0);
  EXPECT_THAT(host.log, Contains(AllOf(HasSubstr("starting over"), HasSubstr("cpu/scalar"))));
}

TEST_F(PipelineTest, ActivationsOfAnotherTierAreNotMixedWithItsOwnBlocks) {
  const PipelineSpec spec = Spec("gptq");
  const std::string digest = Undisturbed(spec).digest;
  TestHost host;
  host.stop_after_commits = 2;
  EXPECT_EQ(Attempt(spec, host).status().code(), absl::StatusCode::kAborted);
  // A worker on another tier starts over and gets as far.
  host.stop_after_commits = 4;
  EXPECT_EQ(Attempt(spec, host, PosixFileSystem(), 1, "scalar").status().code(),
            absl::StatusCode::kAborted);
  if ((*MakeCpuBackend({1, ""}))->Tier() == "cpu/scalar") return;  // there is no other tier
  host.log.clear();
  host.stop_after_commits = std::numeric_limits<int>::max();
  const absl::StatusOr<PipelineResult> result = Attempt(spec, host);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->resumed_at, 2);
  EXPECT_EQ(result->digest, digest);
  EXPECT_THAT(host.log, Contains(HasSubstr("going on after block 2")));
  EXPECT_THAT(host.log, Not(Contains(HasSubstr("starting over"))));
}

TEST_F(PipelineTest, OnlyTheLastTwoSetsOfActivationsAreKept) {
  MakeModel({.layers = 5});
  TestHost host;
  ASSERT_TRUE(Attempt(Spec("gptq"), host).ok());
  const std::string blocks = dir_.File("job") + "/attempt-1/blocks";
  EXPECT_FALSE(stdfs::exists(blocks + "/activations-00002.safetensors"));
  EXPECT_FALSE(stdfs::exists(blocks + "/activations-00003.safetensors"));
  EXPECT_TRUE(stdfs::exists(blocks + "/activations-00004.safetensors"));
  EXPECT_TRUE(stdfs::exists(blocks + "/block-00000.safetensors"));
}

// ---- Faults of the disk ------------------------------------------------------------------------

TEST_F(PipelineTest, AFullDiskEndsTheAttemptAndTheNextOneGoesOn) {
  const PipelineSpec spec = Spec("gptq");
  FaultFileSystem counting(dir_.path());
  TestHost undisturbed;
  const absl::StatusOr<PipelineResult> whole = Attempt(spec, undisturbed, counting);
  ASSERT_TRUE(whole.ok()) << whole.status();
  for (int64_t op = 0; op < counting.operations(); op += 1 + counting.operations() / 12) {
    FaultFileSystem fs(dir_.path());
    fs.Fail(op, ErrnoStatus(ENOSPC, "write", "a file"));
    TestHost host;
    const absl::StatusOr<PipelineResult> full = Attempt(spec, host, fs);
    if (!full.ok()) {  // removing superseded files may fail without harm
      EXPECT_TRUE(IsDiskFull(full.status())) << full.status();
    }
    fs.StopFailing();
    const absl::StatusOr<PipelineResult> result = Attempt(spec, host, fs);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->digest, whole->digest) << "full at operation " << op;
  }
}

TEST_F(PipelineTest, WhatWasCommittedSurvivesAPowerCut) {
  const PipelineSpec spec = Spec("gptq");
  const std::string digest = Undisturbed(spec).digest;
  for (const int commits : {1, 2, 3}) {
    FaultFileSystem fs(dir_.path());
    TestHost host;
    host.stop_after_commits = commits;
    EXPECT_EQ(Attempt(spec, host, fs).status().code(), absl::StatusCode::kAborted);
    fs.Crash();
    host.stop_after_commits = std::numeric_limits<int>::max();
    const absl::StatusOr<PipelineResult> result = Attempt(spec, host, fs);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->resumed_at, commits);
    EXPECT_EQ(result->digest, digest);
  }
}

// ---- Errors ------------------------------------------------------------------------------------

TEST_F(PipelineTest, TheSourceIsDigestedOnceByTheCallerOrByThePipeline) {
  PipelineSpec spec = Spec("rtn");
  EXPECT_EQ(Undisturbed(spec).source_digest, *SourceDigest(spec.model_path));
  spec.model_digest = "taken by the caller";
  EXPECT_EQ(Undisturbed(spec).source_digest, "taken by the caller");
}

TEST_F(PipelineTest, ASchemeWhoseGroupDoesNotFitNamesModulesAndAnOverrideThatDoes) {
  PipelineSpec spec = Spec("rtn");
  spec.recipe.scheme = "int4-g128";
  EXPECT_THAT(
      ErrorOf(spec, absl::StatusCode::kInvalidArgument),
      AllOf(HasSubstr("model.layers.0.self_attn.q_proj has 64"), HasSubstr("multiples of 128"),
            HasSubstr("more modules"), HasSubstr("=int4-g64")));
}

TEST_F(PipelineTest, WrongSpecsNameTheField) {
  PipelineSpec spec = Spec("gptq");
  spec.calibration_path = "";
  EXPECT_THAT(ErrorOf(spec, absl::StatusCode::kInvalidArgument), HasSubstr("calibration_path"));
  spec = Spec("gptq");
  spec.calibration_samples = 0;
  EXPECT_THAT(ErrorOf(spec, absl::StatusCode::kInvalidArgument),
              HasSubstr("calibration_samples is 0"));
  spec = Spec("gptq");
  spec.calibration_length = 4096;  // the model's context is 2048
  EXPECT_THAT(ErrorOf(spec, absl::StatusCode::kInvalidArgument), HasSubstr("between 16 and 2048"));
  spec = Spec("rtn");
  spec.calibration_path = "";
  spec.gate.max_kl = 0.1;
  EXPECT_THAT(ErrorOf(spec, absl::StatusCode::kInvalidArgument), HasSubstr("eval_path"));
  spec = Spec("rtn");
  spec.recipe.overrides = {{"layer.3.*", "int8"}};
  EXPECT_THAT(ErrorOf(spec, absl::StatusCode::kInvalidArgument),
              AllOf(HasSubstr("'layer.3.*'"), HasSubstr("matches no module")));
  spec = Spec("rtn");
  spec.recipe.overrides = {{"embed_tokens", "w8a8"}};
  EXPECT_THAT(ErrorOf(spec, absl::StatusCode::kInvalidArgument), HasSubstr("weight-only"));
  spec.recipe.overrides = {{"lm_head", "llm-int8"}};
  EXPECT_THAT(ErrorOf(spec, absl::StatusCode::kInvalidArgument), HasSubstr("are calibrated"));
  spec = Spec("rtn");
  spec.model_path = dir_.File("nowhere");
  ErrorOf(spec, absl::StatusCode::kNotFound);
}

TEST_F(PipelineTest, AWeightThatIsNotANumberIsNamed) {
  MakeModel({.not_a_number = "model.layers.1.mlp.gate_proj.weight"});
  EXPECT_THAT(ErrorOf(Spec("rtn"), absl::StatusCode::kInvalidArgument),
              AllOf(HasSubstr("model.layers.1.mlp.gate_proj"), HasSubstr("NaN")));
  MakeModel({.not_a_number = "model.layers.2.input_layernorm.weight"});
  EXPECT_THAT(ErrorOf(Spec("gptq"), absl::StatusCode::kInvalidArgument),
              HasSubstr("model.layers.2.input_layernorm.weight"));
}

TEST(ParseGate, ReadsAnySubset) {
  const absl::StatusOr<Gate> all = ParseGate("ppl<=1.05, kl<=0.1, top>=0.9");
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->max_perplexity_ratio, 1.05);
  EXPECT_EQ(all->max_kl, 0.1);
  EXPECT_EQ(all->min_same_top, 0.9);
  const absl::StatusOr<Gate> one = ParseGate("kl<=0.25");
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->max_kl, 0.25);
  EXPECT_EQ(one->max_perplexity_ratio, 0);
  EXPECT_TRUE(ParseGate("").ok());
}

TEST(ParseGate, NamesThePartThatIsWrong) {
  for (const char* text : {"kl<0.1", "ppl<=", "ppl<=x", "top>=1.5", "kl<=-1", "kl<=nan", "kl<=0",
                           "kl<=0.1,,", "kl<=0.1,kl<=0.2", "speed>=3", "ppl<=1.05x"}) {
    const absl::StatusOr<Gate> gate = ParseGate(text);
    EXPECT_EQ(gate.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(gate.status().message()), HasSubstr("gate: ")) << text;
  }
}

}  // namespace
}  // namespace nibble
