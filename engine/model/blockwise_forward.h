// SPDX-License-Identifier: Apache-2.0
// Runs whole token sequences through a decoder one block at a time, so that memory holds the
// weights of one block, not of the model. Between blocks the hidden states lie in an
// ActivationStore. Calibration and the evaluation of a job run this way.
//
// The operations, their order and the KV format are those of Decoder::Forward, so the bits are too.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/artifact/checkpoint.h"
#include "engine/model/activation_store.h"
#include "engine/model/decoder.h"
#include "engine/model/prefill_batch.h"
#include "kernels/backend.h"

namespace nibble {

// The sequences, laid out as steps of a bounded number of rows. The layout follows from the
// sequences alone, so that sums over steps always have the same order. Not thread-safe.
class BlockwiseForward {
 public:
  struct Options {
    const KvFormat* kv = nullptr;
    int32_t context = 0;  // positions of the rope tables, as DecoderOptions::max_context; 0 = the
                          // longest sequence
    std::function<absl::Status()> keep_going;  // asked before each step; an error ends the call;
                                               // may be empty
  };

  // No sequence is empty; token ids lie in the vocabulary.
  static absl::StatusOr<std::unique_ptr<BlockwiseForward>> Make(
      Backend& backend, const DecoderConfig& config, std::vector<std::vector<int32_t>> sequences,
      Options options);

  int64_t rows() const { return rows_; }  // tokens of all sequences, one after the other

  // Streams are (rows(), hidden).
  // stream = embeddings of the tokens. InvalidArgument if the table is not (vocab, hidden).
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

  BlockwiseForward(Backend& backend, const DecoderConfig& config)
      : backend_(backend), config_(config) {}
  void PlanSteps();
  absl::Status KeepGoing() const;

  Backend& backend_;
  const DecoderConfig config_;
  std::vector<std::vector<int32_t>> sequences_;
  Options options_;
  std::vector<Step> steps_;
  int64_t rows_ = 0;
  int32_t longest_ = 0;        // sequence
  int32_t max_sequences_ = 0;  // of a step
  int32_t max_blocks_ = 0;     // of a step
  std::unique_ptr<PrefillBatch> batch_;
  std::unique_ptr<Workspace> workspace_;
  std::unique_ptr<RopeBuffers> rope_;
  std::unique_ptr<Buffer> kv_memory_;
  KvPool kv_;  // of one layer: no block reads what another one appended
  std::vector<float> residual_;
  std::vector<uint8_t> delta_;
};

// Drops from memory what `source` holds of a block's weights, once they have been prepared.
void ReleaseBlock(const Checkpoint& source, int layer);

}  // namespace nibble
