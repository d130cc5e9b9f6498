// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/evaluate_artifact.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "engine/base/cat.h"
#include "engine/eval/blockwise_evaluate.h"

namespace nibble {
namespace {

// Tokens seen at once, where the model takes so many.
constexpr int32_t kEvaluationWindow = 2048;

}  // namespace

absl::Status EvaluateArtifact(const ArtifactEvaluation& inputs, Backend& backend, Report& report) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> artifact = Checkpoint::Open(inputs.artifact_dir);
  if (!artifact.ok()) return artifact.status();
  absl::StatusOr<DecoderConfig> config = ParseDecoderConfig((*artifact)->config());
  if (!config.ok()) return config.status();

  const char* run = "reference";
  int runs_done = 0;
  BlockwiseEvaluator::Options options;
  options.text.max_predictions = inputs.spec->eval_max_tokens;
  options.text.window = std::min(inputs.config->max_positions, kEvaluationWindow);
  options.text.bos_id = inputs.config->bos_id;
  options.text.keep_going = inputs.keep_going;
  options.kv = FindKvFormat(inputs.spec->recipe.kv_format);
  options.activation_budget_bytes = inputs.spec->activation_budget_bytes;
  options.spill_directory = inputs.spill_directory;
  options.on_block = [&](int32_t blocks) {
    const int32_t layers = inputs.config->layers;
    inputs.progress((runs_done + static_cast<double>(blocks) / layers) / 3,
                    Cat(run, ": block ", blocks, "/", layers));
  };
  absl::StatusOr<std::unique_ptr<BlockwiseEvaluator>> evaluator = BlockwiseEvaluator::Make(
      backend, {inputs.config, inputs.source}, *inputs.documents, std::move(options));
  if (!evaluator.ok()) return evaluator.status();

  struct Run {
    Mode mode;
    const char* name;
    QualityScore* score;
  };
  for (const Run& next : {Run{Mode::kExact, "artifact, exact", &report.exact},
                          Run{Mode::kFast, "artifact, fast", &report.fast}}) {
    ++runs_done;
    run = next.name;
    absl::StatusOr<Evaluation> evaluation =
        (*evaluator)->Evaluate({&*config, artifact->get()}, next.mode);
    if (!evaluation.ok()) return evaluation.status();
    *next.score = ScoreOf(*evaluation);
    report.baseline.nll = evaluation->reference_nll();
    report.baseline.perplexity = std::exp(report.baseline.nll);
    report.baseline.predictions = evaluation->predictions();
  }
  report.evaluated = true;
  CheckGate(report);
  return absl::OkStatus();
}

}  // namespace nibble
