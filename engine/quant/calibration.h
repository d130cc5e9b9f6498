// SPDX-License-Identifier: Apache-2.0
// Runs calibration samples through a block, and gathers statistics of what its linears read.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/eval/documents.h"
#include "engine/model/decoder.h"
#include "engine/model/prefill_batch.h"
#include "engine/quant/activation_store.h"
#include "engine/quant/algorithm.h"
#include "kernels/backend.h"

namespace nibble {

// The calibration samples, laid out as steps of a bounded number of rows. The layout follows from
// the samples alone, so that sums over steps always have the same order. Not thread-safe.
class Calibration {
 public:
  // Samples are not empty; token ids lie in the vocabulary. `keep_going` is asked before each step.
  static absl::StatusOr<std::unique_ptr<Calibration>> Make(
      Backend& backend, const DecoderConfig& config, const KvFormat& kv,
      std::vector<Document> samples, std::function<absl::Status()> keep_going);

  int64_t rows() const { return rows_; }  // tokens in all samples

  // stream = embeddings of the samples' tokens.
  absl::Status Embed(const WeightView& table, ActivationStore& stream);
  // Runs `block` on `stream`; its outputs replace the stream's rows if `advance`.
  absl::Status Run(const DecoderBlock& block, ActivationStore& stream, BlockObserver* observer,
                   bool advance);

 private:
  struct Step {
    int64_t first_row = 0;
    int32_t rows = 0;
    std::vector<PrefillBatch::Chunk> chunks;
  };

  Calibration(Backend& backend, const DecoderConfig& config) : backend_(backend), config_(config) {}
  void PlanSteps();

  Backend& backend_;
  const DecoderConfig config_;
  std::vector<Document> samples_;
  std::function<absl::Status()> keep_going_;
  std::vector<Step> steps_;
  int64_t rows_ = 0;
  int32_t max_context_ = 0;
  int32_t max_sequences_ = 0;
  int32_t max_blocks_ = 0;
  std::unique_ptr<PrefillBatch> batch_;
  std::unique_ptr<Workspace> workspace_;
  std::unique_ptr<RopeBuffers> rope_;
  std::unique_ptr<Buffer> kv_memory_;
  KvPool kv_;
};

// What to gather about one input group.
struct StatisticsWanted {
  bool hessian = false;
  bool activations = false;
  bool any() const { return hessian || activations; }
};

// Gathers statistics while a block runs over all `rows` tokens. Use once.
class StatisticsCollector final : public BlockObserver {
 public:
  using Wanted = std::array<StatisticsWanted, 4>;  // by InputGroup

  StatisticsCollector(Backend& backend, const Wanted& wanted, int64_t rows)
      : backend_(backend), wanted_(wanted), rows_(rows) {}

  void OnInput(InputGroup group, const float* x, int64_t rows, int64_t cols) override;
  bool Done() const override { return done_; }

  // The group's statistics, after the last step. InvalidArgument, naming `where`, if an activation
  // was not finite; ResourceExhausted if memory was short.
  absl::StatusOr<InputStatistics> Take(InputGroup group, std::string_view where);

 private:
  struct Sums {
    std::unique_ptr<Buffer> hessian;  // (cols, cols) f32, lower triangle of sum x x^T
    std::vector<double> abs;          // (cols)
    std::vector<float> max;           // (cols)
    std::vector<float> samples;       // (some rows, cols)
    int64_t cols = 0;
    int64_t seen = 0;  // rows
  };

  void AddActivations(Sums& sums, const float* x, int64_t rows, int64_t cols);

  Backend& backend_;
  const Wanted wanted_;
  const int64_t rows_;
  std::array<Sums, 4> sums_;
  std::vector<float> host_;
  bool done_ = false;  // in this step
  absl::Status status_;
};

}  // namespace nibble
