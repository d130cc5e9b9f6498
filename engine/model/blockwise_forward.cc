// SPDX-License-Identifier: Apache-2.0
#include "engine/model/blockwise_forward.h"

#include <algorithm>
#include <span>
#include <utility>

#include "engine/base/cat.h"
#include "kernels/check.h"
#include "kernels/codec.h"

namespace nibble {
namespace {

// Rows of one step. Part of the quantizer's arithmetic: Hessians are summed step by step.
constexpr int32_t kStepRows = 1024;
// Sequences of one step: each takes at least one block of the KV pool, however short it is.
constexpr size_t kStepSequences = 64;

}  // namespace

void BlockwiseForward::PlanSteps() {
  int32_t first_block = 0;
  Step step;
  auto flush = [&] {
    if (step.rows == 0) return;
    max_sequences_ = std::max(max_sequences_, static_cast<int32_t>(step.chunks.size()));
    max_blocks_ = std::max(max_blocks_, first_block);
    rows_ += step.rows;
    steps_.push_back(std::move(step));
    step = Step{rows_, 0, {}};
    first_block = 0;
  };
  for (const std::vector<int32_t>& sequence : sequences_) {
    const auto length = static_cast<int32_t>(sequence.size());
    longest_ = std::max(longest_, length);
    if (step.rows + length > kStepRows || step.chunks.size() == kStepSequences) flush();
    const int32_t blocks = PrefillBatch::BlocksFor(length);
    for (int32_t start = 0; start < length; start += kStepRows) {
      const int32_t count = std::min(kStepRows, length - start);
      step.chunks.push_back({std::span<const int32_t>(sequence).subspan(static_cast<size_t>(start),
                                                                        static_cast<size_t>(count)),
                             start, first_block});
      step.rows += count;
      if (length > kStepRows) {  // a long sequence's parts are steps of their own
        first_block = blocks;
        flush();
      }
    }
    if (length <= kStepRows) first_block += blocks;
  }
  flush();
}

absl::StatusOr<std::unique_ptr<BlockwiseForward>> BlockwiseForward::Make(
    Backend& backend, const DecoderConfig& config, std::vector<std::vector<int32_t>> sequences,
    Options options) {
  std::unique_ptr<BlockwiseForward> result(new BlockwiseForward(backend, config));
  result->sequences_ = std::move(sequences);
  result->options_ = std::move(options);
  result->PlanSteps();
  const Options& wanted = result->options_;
  const int32_t context = wanted.context > 0 ? wanted.context : result->longest_;
  NIBBLE_CHECK(result->longest_ > 0 && result->longest_ <= context);
  auto batch = PrefillBatch::Make(backend, kStepRows, result->max_sequences_, result->longest_);
  if (!batch.ok()) return batch.status();
  result->batch_ = *std::move(batch);
  auto workspace = Workspace::Make(backend, config, kStepRows, 1);
  if (!workspace.ok()) return workspace.status();
  result->workspace_ = *std::move(workspace);
  auto rope = RopeBuffers::Make(backend, config, context);
  if (!rope.ok()) return rope.status();
  result->rope_ = *std::move(rope);
  if (absl::Status status =
          backend.Reserve({.rows = kStepRows,
                           .sequences = result->max_sequences_,
                           .max_blocks = PrefillBatch::BlocksFor(result->longest_),
                           .heads = config.heads,
                           .head_dim = config.head_dim});
      !status.ok()) {
    return status;
  }
  const KvSpec spec{wanted.kv, 1, config.kv_heads, config.head_dim};
  auto memory = backend.AllocateKv(spec, result->max_blocks_, &result->kv_);
  if (!memory.ok()) return memory.status();
  result->kv_memory_ = *std::move(memory);
  const size_t values = static_cast<size_t>(kStepRows) * static_cast<size_t>(config.hidden);
  result->residual_.resize(values);
  result->delta_.resize(values * BytesOf(backend.activation_type()));
  return result;
}

absl::Status BlockwiseForward::KeepGoing() const {
  return options_.keep_going ? options_.keep_going() : absl::OkStatus();
}

absl::Status BlockwiseForward::Embed(const WeightView& table, ActivationStore& stream) {
  if (table.rows != config_.vocab || table.cols != config_.hidden) {
    return absl::InvalidArgumentError(Cat("model.embed_tokens has shape [", table.rows, ", ",
                                          table.cols, "]; config.json calls for [", config_.vocab,
                                          ", ", config_.hidden, "]"));
  }
  absl::StatusOr<std::unique_ptr<PreparedEmbedding>> prepared = backend_.PrepareEmbedding(table);
  if (!prepared.ok()) return prepared.status();
  for (const Step& step : steps_) {
    if (absl::Status status = KeepGoing(); !status.ok()) return status;
    const BatchView& view = batch_->Set(step.chunks, /*logits=*/false);
    backend_.Embed({.table = prepared->get(),
                    .ids = view.token_ids,
                    .rows = step.rows,
                    .scale = config_.embedding_scale,
                    .out = workspace_->residual()});
    backend_.Download(
        residual_.data(), workspace_->residual(),
        static_cast<size_t>(step.rows) * static_cast<size_t>(config_.hidden) * sizeof(float));
    if (absl::Status status = backend_.Sync(); !status.ok()) return status;
    if (absl::Status status = stream.Write(step.first_row, step.rows, residual_.data());
        !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status BlockwiseForward::Run(const DecoderBlock& block, ActivationStore& stream,
                                   BlockObserver* observer, bool advance) {
  for (const Step& step : steps_) {
    if (absl::Status status = KeepGoing(); !status.ok()) return status;
    if (absl::Status status = stream.Read(step.first_row, step.rows, residual_.data());
        !status.ok()) {
      return status;
    }
    const size_t count = static_cast<size_t>(step.rows) * static_cast<size_t>(config_.hidden);
    backend_.Upload(workspace_->residual(), residual_.data(), count * sizeof(float));
    const BatchView& view = batch_->Set(step.chunks, /*logits=*/false);
    block.Forward(view, kv_, 0, *rope_, *workspace_, /*has_delta=*/false, observer);
    const Floats delta = workspace_->delta();
    if (advance) {
      backend_.Download(residual_.data(), workspace_->residual(), count * sizeof(float));
      backend_.Download(delta_.data(), delta.data, count * BytesOf(delta.dtype));
    }
    if (absl::Status status = backend_.Sync(); !status.ok()) return status;
    if (!advance) continue;
    // The sum that the next norm would form.
    for (size_t i = 0; i < count; ++i) {
      residual_[i] += LoadFloat(delta_.data(), delta.dtype, static_cast<int64_t>(i));
    }
    if (absl::Status status = stream.Write(step.first_row, step.rows, residual_.data());
        !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

void ReleaseBlock(const Checkpoint& source, int layer) {
  for (const InputGroup group : kInputGroups) {
    for (const std::string& name : GroupModules(group)) source.Release(BlockModule(layer, name));
  }
}

}  // namespace nibble
