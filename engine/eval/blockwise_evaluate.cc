// SPDX-License-Identifier: Apache-2.0
#include "engine/eval/blockwise_evaluate.h"

#include <algorithm>
#include <span>

#include "engine/base/cat.h"
#include "engine/model/blockwise_forward.h"
#include "engine/model/decoder.h"
#include "kernels/check.h"

namespace nibble {
namespace {

// Rows whose logits exist at a time: so many, or as many as this memory holds.
constexpr int64_t kLogitRows = 256;
constexpr int64_t kLogitBytes = int64_t{64} << 20;

// The prepared head of a model, with room for a chunk of rows.
class Head {
 public:
  static absl::StatusOr<Head> Prepare(Backend& backend, OpenModelRef model, Mode mode,
                                      const ActivationStore& states, int64_t max_rows) {
    Head result(backend, *model.config, states);
    auto head = DecoderHead::Prepare(backend, *model.config, *model.source, mode);
    if (!head.ok()) return head.status();
    result.head_ = *std::move(head);
    for (const char* module : {"lm_head", "model.embed_tokens"}) model.source->Release(module);
    auto workspace = Workspace::Make(backend, *model.config, max_rows, max_rows);
    if (!workspace.ok()) return workspace.status();
    result.workspace_ = *std::move(workspace);
    result.residual_.resize(static_cast<size_t>(max_rows * model.config->hidden));
    result.logits_.resize(static_cast<size_t>(max_rows * model.config->vocab));
    return result;
  }

  // Logits (count, vocab) of rows [first, first + count), valid until the next call.
  absl::StatusOr<const float*> Logits(int64_t first, int64_t count) {
    if (absl::Status status = states_->Read(first, count, residual_.data()); !status.ok()) {
      return status;
    }
    const auto bytes = [count](int32_t width) {
      return static_cast<size_t>(count * width) * sizeof(float);
    };
    backend_->Upload(workspace_->residual(), residual_.data(), bytes(config_->hidden));
    const float* device = head_->Forward(nullptr, count, *workspace_, /*has_delta=*/false);
    backend_->Download(logits_.data(), device, bytes(config_->vocab));
    if (absl::Status status = backend_->Sync(); !status.ok()) return status;
    return logits_.data();
  }

 private:
  Head(Backend& backend, const DecoderConfig& config, const ActivationStore& states)
      : backend_(&backend), config_(&config), states_(&states) {}

  Backend* backend_;
  const DecoderConfig* config_;
  const ActivationStore* states_;
  std::unique_ptr<DecoderHead> head_;
  std::unique_ptr<Workspace> workspace_;
  std::vector<float> residual_;
  std::vector<float> logits_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ActivationStore>> BlockwiseEvaluator::RunBlocks(OpenModelRef model,
                                                                               Mode mode,
                                                                               const KvFormat& kv) {
  const DecoderConfig& config = *model.config;
  // The model's stream and the reference's exist at the same time.
  const int64_t bytes = 2 * rows_ * config.hidden * static_cast<int64_t>(sizeof(float));
  auto made = ActivationStore::Make(rows_, config.hidden, bytes > options_.activation_budget_bytes,
                                    options_.spill_directory);
  if (!made.ok()) return made.status();
  std::unique_ptr<ActivationStore> states = *std::move(made);

  std::vector<std::vector<int32_t>> inputs;
  inputs.reserve(windows_.size());
  for (const EvaluationWindow& window : windows_) {  // the last token predicts nothing
    inputs.emplace_back(window.tokens.begin(), window.tokens.end() - 1);
  }
  auto forward = BlockwiseForward::Make(
      backend_, config, std::move(inputs),
      {.kv = &kv, .context = options_.text.window, .keep_going = options_.text.keep_going});
  if (!forward.ok()) return forward.status();
  NIBBLE_CHECK((*forward)->rows() == rows_);

  auto table = model.source->Weight("model.embed_tokens");
  if (!table.ok()) return table.status();
  if (absl::Status status = (*forward)->Embed(*table, *states); !status.ok()) return status;
  model.source->Release("model.embed_tokens");
  for (int layer = 0; layer < config.layers; ++layer) {
    auto block = DecoderBlock::Prepare(backend_, config, layer, *model.source, mode);
    if (!block.ok()) return block.status();
    ReleaseBlock(*model.source, layer);
    absl::Status status = (*forward)->Run(**block, *states, nullptr, /*advance=*/true);
    if (!status.ok()) return status;
    if (options_.on_block) options_.on_block(layer + 1);
  }
  return states;
}

absl::StatusOr<std::unique_ptr<BlockwiseEvaluator>> BlockwiseEvaluator::Make(
    Backend& backend, OpenModelRef reference, const std::vector<Document>& documents,
    Options options) {
  NIBBLE_CHECK(options.kv != nullptr);
  std::unique_ptr<BlockwiseEvaluator> result(
      new BlockwiseEvaluator(backend, reference, std::move(options)));
  const Options& wanted = result->options_;
  auto windows = PlanWindows(documents, reference.config->vocab, wanted.text.window, wanted.text);
  if (!windows.ok()) return windows.status();
  result->windows_ = *std::move(windows);
  for (const EvaluationWindow& window : result->windows_) {
    result->rows_ += static_cast<int64_t>(window.tokens.size()) - 1;
  }
  const KvFormat* reference_kv = wanted.text.reference_kv;
  auto states =
      result->RunBlocks(reference, Mode::kExact,
                        reference_kv != nullptr ? *reference_kv : ReferenceKvFormat(*wanted.kv));
  if (!states.ok()) return states.status();
  result->reference_states_ = *std::move(states);
  return result;
}

absl::StatusOr<Evaluation> BlockwiseEvaluator::Evaluate(OpenModelRef model, Mode mode) {
  const int64_t vocab = reference_.config->vocab;
  if (model.config->vocab != vocab) {
    return absl::InvalidArgumentError(Cat("the reference has a vocabulary of ", vocab,
                                          ", the model one of ", model.config->vocab,
                                          "; they must be equal"));
  }
  auto states = RunBlocks(model, mode, *options_.kv);
  if (!states.ok()) return states.status();
  const int64_t chunk = std::clamp<int64_t>(
      kLogitBytes / (vocab * static_cast<int64_t>(sizeof(float))), 1, kLogitRows);
  auto head = Head::Prepare(backend_, model, mode, **states, chunk);
  if (!head.ok()) return head.status();
  auto reference = Head::Prepare(backend_, reference_, Mode::kExact, *reference_states_, chunk);
  if (!reference.ok()) return reference.status();

  ScoreSum sum(vocab, /*with_reference=*/true);
  int64_t row = 0;
  for (const EvaluationWindow& window : windows_) {
    const std::span<const int32_t> targets = std::span(window.tokens).subspan(1);
    for (size_t start = 0; start < targets.size(); start += static_cast<size_t>(chunk)) {
      if (options_.text.keep_going) {
        if (absl::Status status = options_.text.keep_going(); !status.ok()) return status;
      }
      const size_t count = std::min(static_cast<size_t>(chunk), targets.size() - start);
      auto logits = head->Logits(row, static_cast<int64_t>(count));
      if (!logits.ok()) return logits.status();
      auto reference_logits = reference->Logits(row, static_cast<int64_t>(count));
      if (!reference_logits.ok()) return reference_logits.status();
      sum.Add(window.document, *logits, *reference_logits, targets.subspan(start, count));
      row += static_cast<int64_t>(count);
    }
  }
  return sum.Finish();
}

}  // namespace nibble
