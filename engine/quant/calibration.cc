// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/calibration.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "engine/base/cat.h"
#include "kernels/codec.h"

namespace nibble {
namespace {

// Rows of one step. Part of the arithmetic: Hessians are summed step by step.
constexpr int32_t kStepRows = 1024;
// Rows kept as samples for searches on activations.
constexpr int64_t kSampleRows = 128;

}  // namespace

void Calibration::PlanSteps() {
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
  for (const Document& sample : samples_) {
    const auto length = static_cast<int32_t>(sample.size());
    max_context_ = std::max(max_context_, length);
    if (step.rows + length > kStepRows) flush();
    const int32_t blocks = PrefillBatch::BlocksFor(length);
    for (int32_t start = 0; start < length; start += kStepRows) {
      const int32_t count = std::min(kStepRows, length - start);
      step.chunks.push_back({std::span<const int32_t>(sample).subspan(static_cast<size_t>(start),
                                                                      static_cast<size_t>(count)),
                             start, first_block});
      step.rows += count;
      if (length > kStepRows) {  // a long sample's parts are steps of their own
        first_block = blocks;
        flush();
      }
    }
    if (length <= kStepRows) first_block += blocks;
  }
  flush();
}

absl::StatusOr<std::unique_ptr<Calibration>> Calibration::Make(
    Backend& backend, const DecoderConfig& config, const KvFormat& kv,
    std::vector<Document> samples, std::function<absl::Status()> keep_going) {
  std::unique_ptr<Calibration> result(new Calibration(backend, config));
  result->samples_ = std::move(samples);
  result->keep_going_ = std::move(keep_going);
  result->PlanSteps();
  auto batch = PrefillBatch::Make(backend, kStepRows, result->max_sequences_, result->max_context_);
  if (!batch.ok()) return batch.status();
  result->batch_ = *std::move(batch);
  auto workspace = Workspace::Make(backend, config, kStepRows, 1);
  if (!workspace.ok()) return workspace.status();
  result->workspace_ = *std::move(workspace);
  auto rope = RopeBuffers::Make(backend, config, result->max_context_);
  if (!rope.ok()) return rope.status();
  result->rope_ = *std::move(rope);
  const KvSpec spec{&kv, 1, config.kv_heads, config.head_dim};
  auto memory = backend.AllocateKv(spec, result->max_blocks_, &result->kv_);
  if (!memory.ok()) return memory.status();
  result->kv_memory_ = *std::move(memory);
  return result;
}

absl::Status Calibration::Embed(const WeightView& table, ActivationStore& stream) {
  absl::StatusOr<std::unique_ptr<PreparedEmbedding>> prepared = backend_.PrepareEmbedding(table);
  if (!prepared.ok()) return prepared.status();
  std::vector<float> host(static_cast<size_t>(kStepRows) * static_cast<size_t>(config_.hidden));
  for (const Step& step : steps_) {
    if (absl::Status status = keep_going_(); !status.ok()) return status;
    const BatchView& view = batch_->Set(step.chunks, /*logits=*/false);
    backend_.Embed({.table = prepared->get(),
                    .ids = view.token_ids,
                    .rows = step.rows,
                    .scale = config_.embedding_scale,
                    .out = workspace_->residual()});
    backend_.Download(
        host.data(), workspace_->residual(),
        static_cast<size_t>(step.rows) * static_cast<size_t>(config_.hidden) * sizeof(float));
    if (absl::Status status = backend_.Sync(); !status.ok()) return status;
    if (absl::Status status = stream.Write(step.first_row, step.rows, host.data()); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status Calibration::Run(const DecoderBlock& block, ActivationStore& stream,
                              BlockObserver* observer, bool advance) {
  const auto hidden = static_cast<size_t>(config_.hidden);
  std::vector<float> residual(static_cast<size_t>(kStepRows) * hidden);
  std::vector<uint8_t> delta(residual.size() * sizeof(float));
  for (const Step& step : steps_) {
    if (absl::Status status = keep_going_(); !status.ok()) return status;
    if (absl::Status status = stream.Read(step.first_row, step.rows, residual.data());
        !status.ok()) {
      return status;
    }
    const size_t count = static_cast<size_t>(step.rows) * hidden;
    backend_.Upload(workspace_->residual(), residual.data(), count * sizeof(float));
    const BatchView& view = batch_->Set(step.chunks, /*logits=*/false);
    block.Forward(view, kv_, 0, *rope_, *workspace_, /*has_delta=*/false, observer);
    if (advance) {
      const Floats device = workspace_->delta();
      backend_.Download(residual.data(), workspace_->residual(), count * sizeof(float));
      backend_.Download(delta.data(), device.data, count * BytesOf(device.dtype));
    }
    if (absl::Status status = backend_.Sync(); !status.ok()) return status;
    if (!advance) continue;
    // The sum that the next block's norm would form.
    const DType type = workspace_->delta().dtype;
    for (size_t i = 0; i < count; ++i) {
      residual[i] += LoadFloat(delta.data(), type, static_cast<int64_t>(i));
    }
    if (absl::Status status = stream.Write(step.first_row, step.rows, residual.data());
        !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

void StatisticsCollector::OnInput(InputGroup group, const float* x, int64_t rows, int64_t cols) {
  done_ = true;
  for (size_t later = static_cast<size_t>(group) + 1; later < wanted_.size(); ++later) {
    done_ = done_ && !wanted_[later].any();
  }
  const StatisticsWanted& wanted = wanted_[static_cast<size_t>(group)];
  if (!wanted.any() || !status_.ok()) return;
  Sums& sums = sums_[static_cast<size_t>(group)];
  sums.cols = cols;
  if (wanted.hessian) {
    if (sums.hessian == nullptr) {
      auto buffer = backend_.Allocate(static_cast<size_t>(cols * cols) * sizeof(float));
      if (!buffer.ok()) {
        status_ = buffer.status();
        return;
      }
      sums.hessian = *std::move(buffer);
    }
    backend_.AccumulateHessian({.x = x, .rows = rows, .dim = cols, .h = sums.hessian->as<float>()});
  }
  if (wanted.activations) {
    host_.resize(static_cast<size_t>(rows * cols));
    backend_.Download(host_.data(), x, host_.size() * sizeof(float));
    status_ = backend_.Sync();
    if (!status_.ok()) return;
    AddActivations(sums, host_.data(), rows, cols);
  }
  sums.seen += rows;
}

void StatisticsCollector::AddActivations(Sums& sums, const float* x, int64_t rows, int64_t cols) {
  const auto k = static_cast<size_t>(cols);
  sums.abs.resize(k, 0.0);
  sums.max.resize(k, 0.0f);
  const int64_t stride = std::max<int64_t>(1, rows_ / kSampleRows);
  for (int64_t t = 0; t < rows; ++t) {
    const float* row = x + t * cols;
    for (size_t j = 0; j < k; ++j) {
      const float a = std::fabs(row[j]);
      sums.abs[j] += static_cast<double>(a);
      sums.max[j] = std::max(sums.max[j], a);
    }
    if ((sums.seen + t) % stride == 0 &&
        sums.samples.size() < static_cast<size_t>(kSampleRows) * k) {
      sums.samples.insert(sums.samples.end(), row, row + cols);
    }
  }
}

absl::StatusOr<InputStatistics> StatisticsCollector::Take(InputGroup group,
                                                          std::string_view where) {
  if (!status_.ok()) return status_;
  const StatisticsWanted& wanted = wanted_[static_cast<size_t>(group)];
  Sums& sums = sums_[static_cast<size_t>(group)];
  const int64_t k = sums.cols;
  InputStatistics result;
  bool finite = true;
  if (wanted.hessian) {
    result.hessian = Matrix(k, k);
    backend_.Download(result.hessian.row(0), sums.hessian->data(),
                      result.hessian.values.size() * sizeof(float));
    if (absl::Status status = backend_.Sync(); !status.ok()) return status;
    sums.hessian.reset();
    const double factor = 2.0 / static_cast<double>(sums.seen);
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        const auto value =
            static_cast<float>(static_cast<double>(result.hessian.at(i, j)) * factor);
        result.hessian.at(i, j) = value;
        result.hessian.at(j, i) = value;
      }
      finite = finite && std::isfinite(result.hessian.at(i, i));
    }
  }
  if (wanted.activations) {
    for (const double sum : sums.abs) {
      const auto mean = static_cast<float>(sum / static_cast<double>(sums.seen));
      finite = finite && std::isfinite(mean);
      result.mean_abs.push_back(mean);
    }
    result.max_abs = std::move(sums.max);
    result.samples.rows = static_cast<int64_t>(sums.samples.size()) / k;
    result.samples.cols = k;
    result.samples.values = std::move(sums.samples);
  }
  if (!finite) {
    return absl::InvalidArgumentError(
        Cat("activations at the input of ", where,
            " are not finite (NaN or infinity) on the calibration set; the model or its weights "
            "are broken there"));
  }
  return result;
}

}  // namespace nibble
