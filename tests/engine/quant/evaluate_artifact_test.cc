// SPDX-License-Identifier: Apache-2.0
// The figures at the end of a job, and the memory that a job takes.
#include "engine/quant/evaluate_artifact.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "engine/eval/evaluate.h"
#include "engine/model/decoder.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/engine/quant/test_host.h"
#include "tests/support/counting_backend.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace {

using testing::CountingBackend;
using testing::TestHost;
using testing::TinyModel;
using testing::TinyModelOptions;

class EvaluateArtifactTest : public ::testing::Test {
 protected:
  void SetUp() override {
    backend_ = *MakeCpuBackend({2, ""});
    TinyModel::WriteIds(dir_.File("calibration.jsonl"), 8, 31, 5);
  }

  // A job on a new model.
  PipelineResult Run(const TinyModelOptions& model, std::string_view recipe, Backend& backend,
                     TestHost& host, const char* kv = "bf16") {
    const std::string job = dir_.File(std::to_string(jobs_++));
    TinyModel(job + "/model", model);
    std::filesystem::create_directories(job + "/work");
    spec_ = {};
    spec_.model_path = job + "/model";
    spec_.recipe = *BuiltinRecipe(recipe);
    if (spec_.recipe.scheme == "int4-g128") spec_.recipe.scheme = "int4-g32";
    spec_.recipe.kv_format = kv;
    spec_.calibration_path = dir_.File("calibration.jsonl");
    spec_.calibration_length = 32;
    spec_.eval_path = dir_.File("heldout.jsonl");
    absl::StatusOr<PipelineResult> result =
        RunPipeline(spec_, backend, PosixFileSystem(), job + "/work", job, host);
    EXPECT_TRUE(result.ok()) << result.status();
    return *std::move(result);
  }

  // What whole models say.
  absl::StatusOr<Evaluation> Whole(const std::string& artifact, Mode mode) {
    auto source = *Checkpoint::Open(spec_.model_path);
    auto opened = *Checkpoint::Open(artifact);
    const DecoderConfig source_config = *ParseDecoderConfig(source->config());
    DecoderOptions load{
        .mode = Mode::kExact, .max_rows = 100, .max_logit_rows = 100, .max_context = 2048};
    auto reference = *Decoder::Load(*backend_, source_config, *source, load);
    load.mode = mode;
    auto model = *Decoder::Load(*backend_, *ParseDecoderConfig(opened->config()), *opened, load);
    EvaluateOptions options;
    options.max_predictions = spec_.eval_max_tokens;
    options.bos_id = source_config.bos_id;
    auto tokenizer = *Tokenizer::FromDirectory(spec_.model_path);
    return Evaluate(*model, reference.get(), *ReadDocuments(spec_.eval_path, *tokenizer),
                    *FindKvFormat(spec_.recipe.kv_format), options);
  }

  TempDir dir_;
  std::unique_ptr<Backend> backend_;
  PipelineSpec spec_;
  int jobs_ = 0;
};

TEST_F(EvaluateArtifactTest, TheReportHoldsTheFiguresOfWholeModelsToTheBit) {
  // One document is longer than the window of 2048, all are longer than the model's sliding window.
  TinyModel::WriteIds(dir_.File("heldout.jsonl"), 2, 40, 6);
  TinyModel::WriteIds(dir_.File("long.jsonl"), 1, 2500, 7);
  WriteFile(dir_.File("heldout.jsonl"),
            ReadFile(dir_.File("heldout.jsonl")) + ReadFile(dir_.File("long.jsonl")));
  const std::pair<const char*, const char*> jobs[] = {{"rtn", "int4"}, {"smoothquant", "int8"}};
  for (const auto& [recipe, kv] : jobs) {
    TestHost host;
    const PipelineResult result =
        Run({.layers = 2, .sliding_window = 20}, recipe, *backend_, host, kv);
    for (const auto& [name, mode] :
         {std::pair<const char*, Mode>("exact", Mode::kExact), {"fast", Mode::kFast}}) {
      const absl::StatusOr<Evaluation> whole = Whole(result.artifact_dir, mode);
      ASSERT_TRUE(whole.ok()) << whole.status();
      const nlohmann::json& figures = result.report["evaluation"][name];
      EXPECT_GT(whole->kl(), 0) << recipe;
      EXPECT_EQ(figures["kl"].get<double>(), whole->kl()) << recipe << " " << name;
      EXPECT_EQ(figures["nll"].get<double>(), whole->nll()) << recipe << " " << name;
      EXPECT_EQ(figures["perplexity"].get<double>(), whole->perplexity()) << recipe << " " << name;
      EXPECT_EQ(figures["same_top"].get<double>(), whole->same_top()) << recipe << " " << name;
      EXPECT_EQ(figures["predictions"].get<int64_t>(), 2 * 40 + 2047 + 453);
      EXPECT_EQ(result.report["evaluation"]["baseline"]["nll"].get<double>(),
                whole->reference_nll());
    }
  }
}

TEST_F(EvaluateArtifactTest, AJobTakesTheMemoryOfABlockWhateverTheDepthOfTheModel) {
  TinyModel::WriteIds(dir_.File("heldout.jsonl"), 3, 40, 6);
  for (const char* recipe : {"rtn", "awq-gptq"}) {
    std::pair<int64_t, int64_t> most[2];
    for (const int layers : {2, 6}) {
      TestHost host;
      CountingBackend counting(*backend_);
      Run({.layers = layers}, recipe, counting, host);
      auto source = *Checkpoint::Open(spec_.model_path);
      const DecoderConfig config = *ParseDecoderConfig(source->config());
      // A block whose weights are f32, as the quantizer works on it, takes twice this one's bytes.
      auto block = *DecoderBlock::Prepare(*backend_, config, 0, *source, Mode::kExact);
      EXPECT_LE(counting.weights().most, 2 * static_cast<int64_t>(block->resident_bytes()));
      EXPECT_EQ(counting.weights().alive, 0);
      most[layers == 6] = {counting.weights().most, counting.buffers().most};
    }
    EXPECT_EQ(most[0], most[1]) << recipe;
  }
}

TEST_F(EvaluateArtifactTest, ProgressNamesEveryBlockOfEveryRun) {
  TinyModel::WriteIds(dir_.File("heldout.jsonl"), 3, 40, 6);
  TestHost host;
  Run({.layers = 2}, "rtn", *backend_, host);
  std::vector<std::string> messages;
  for (const PipelineProgress& progress : host.progress) {
    if (progress.phase == "evaluate") messages.push_back(progress.message);
  }
  EXPECT_THAT(messages,
              ::testing::ElementsAre("reference: block 1/2", "reference: block 2/2",
                                     "artifact, exact: block 1/2", "artifact, exact: block 2/2",
                                     "artifact, fast: block 1/2", "artifact, fast: block 2/2"));
}

TEST_F(EvaluateArtifactTest, AnAttemptStoppedWhileEvaluatingLeavesTheBlocksToTheNext) {
  TinyModel::WriteIds(dir_.File("heldout.jsonl"), 3, 40, 6);
  TestHost whole;
  const PipelineResult undisturbed = Run({.layers = 3}, "gptq", *backend_, whole);
  TestHost host;
  host.checkpoints = {};
  host.stop_after_asked = whole.asked - 1;
  const std::string job = dir_.File("stopped");
  for (const bool first : {true, false}) {
    const std::string work = job + (first ? "/1" : "/2");
    std::filesystem::create_directories(work);
    const absl::StatusOr<PipelineResult> result =
        RunPipeline(spec_, *backend_, PosixFileSystem(), work, job, host);
    if (first) {
      EXPECT_EQ(result.status().code(), absl::StatusCode::kAborted);
      EXPECT_EQ(host.progress.back().phase, "evaluate");
      host.stop_after_asked = std::numeric_limits<int>::max();
      host.last_fraction = 0;
      continue;
    }
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->blocks_computed, 0);
    EXPECT_EQ(result->digest, undisturbed.digest);
    EXPECT_EQ(result->report["evaluation"], undisturbed.report["evaluation"]);
  }
}

}  // namespace
}  // namespace nibble
