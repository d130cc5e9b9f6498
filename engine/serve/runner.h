// SPDX-License-Identifier: Apache-2.0
// What the engine needs from a model: run steps over batches. Submit and Collect are apart: where
// the device works by itself, the next step is submitted before this one is collected, so that the
// device never waits for the host.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/artifact/weight_source.h"
#include "engine/model/decoder.h"
#include "engine/serve/request.h"
#include "kernels/backend.h"

namespace nibble {

// What a runner can take; fixed for its life.
struct RunnerLimits {
  int32_t vocab = 0;
  int32_t max_context = 0;     // positions of one sequence
  int32_t max_rows = 0;        // tokens in one step
  int32_t max_logit_rows = 0;  // rows of logits in one step
  int32_t max_sequences = 0;   // sequences in one step
  int32_t kv_blocks = 0;       // blocks of kKvBlockTokens positions
  int64_t kv_block_bytes = 0;
  std::vector<int32_t> eos_ids;
  bool ahead = false;  // Submit returns before its step is computed: submitting the next one before
                       // collecting it gains time
};

// A row of logits that is wanted for the prompt's own log-probabilities.
struct ScoreRow {
  int32_t target = 0;  // token whose log-probability is asked for
  int32_t top = 0;     // so many most likely ones too, <= kMaxLogprobs
};

// One step in host memory, laid out like BatchView. Row i of the logits belongs to logit_rows[i];
// it is used for sampling[...] or score[...] as logit_use says.
struct StepInput {
  // (rows) or -1 - i where the token is not known yet: what the step before draws as sampling[i].
  std::vector<int32_t> token_ids;
  std::vector<int32_t> positions;       // (rows)
  std::vector<int32_t> row_sequence;    // (rows)
  std::vector<int32_t> query_start;     // (sequences + 1)
  std::vector<int32_t> context_length;  // (sequences)
  std::vector<int32_t> block_table;     // (sequences, max_blocks)
  int32_t max_blocks = 0;
  int32_t max_query = 0;
  std::vector<int32_t> logit_rows;    // (num_logits) ascending
  std::vector<uint8_t> draws;         // (num_logits) 1: takes the next of sampling, 0: of score
  std::vector<SamplingRow> sampling;  // in the order of their logit rows
  std::vector<ScoreRow> score;        // in the order of their logit rows

  int32_t rows() const { return static_cast<int32_t>(token_ids.size()); }
  int32_t sequences() const { return static_cast<int32_t>(context_length.size()); }
  void Clear();  // keeps capacity
};

struct StepOutput {
  std::vector<SampleResult> samples;  // one per StepInput::sampling
  std::vector<TokenLogprob> scores;   // one per StepInput::score
  double device_seconds = 0;          // that the device worked on it; 0 if that is not known
};

inline constexpr int kStepsUnderWay = 2;  // submitted and not collected, at most

// Driven by one thread at a time.
class ModelRunner {
 public:
  virtual ~ModelRunner() = default;
  virtual const RunnerLimits& limits() const = 0;
  // Starts a step; steps run and are collected in order. `input` stays as it is until its Collect
  // returned; what `input.sampling` points to, until Submit returned. A step that scores must be
  // collected before the next is submitted.
  virtual void Submit(const StepInput& input) = 0;
  // Waits for the oldest step. An error means that the device failed: the runner is not used again.
  virtual absl::Status Collect(StepOutput* output) = 0;
};

struct DecoderRunnerOptions {
  Mode mode = Mode::kFast;
  const KvFormat* kv_format = nullptr;  // nullptr = bf16
  int32_t max_context = 0;              // positions; 0 = the model's max_positions
  int32_t max_sequences = 32;           // 1..4096
  int32_t token_budget = 512;           // tokens of one step, > max_sequences, at most 65536
  int64_t kv_bytes = 0;                 // memory of the KV pool; 0 = max_sequences / 2 whole
                                        // contexts, at least one; on a device with memory of its
                                        // own, nine tenths of what the weights leave
};

// A runner on a Decoder: owns backend, decoder, KV pool and step buffers.
class DecoderRunner final : public ModelRunner {
 public:
  // InvalidArgument naming an option that is out of range; ResourceExhausted if memory is short;
  // Decoder::Load's errors.
  static absl::StatusOr<std::unique_ptr<DecoderRunner>> Load(std::unique_ptr<Backend> backend,
                                                             const DecoderConfig& config,
                                                             const WeightSource& source,
                                                             const DecoderRunnerOptions& options);
  ~DecoderRunner() override;

  const RunnerLimits& limits() const override;
  void Submit(const StepInput& input) override;
  absl::Status Collect(StepOutput* output) override;

  const Decoder& decoder() const;
  size_t resident_bytes() const;  // weights, workspace and step buffers, without the KV pool
  size_t kv_bytes() const;

 private:
  struct Impl;
  explicit DecoderRunner(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
