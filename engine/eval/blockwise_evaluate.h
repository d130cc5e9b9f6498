// SPDX-License-Identifier: Apache-2.0
// The evaluation of models that need not fit into memory: Evaluate's figures, to the bit, with the
// weights of one block prepared at a time.
//
// The documents go through a model block by block; what they are between blocks is kept (a row of
// f32 per token, in a file above a budget). Logits exist for a chunk of rows at a time, of the
// reference and of the model side by side, with both heads prepared.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/artifact/checkpoint.h"
#include "engine/eval/evaluation.h"
#include "engine/model/activation_store.h"
#include "engine/model/blockwise_forward.h"
#include "engine/model/config.h"

namespace nibble {

// A model that is opened, not prepared. Both must outlive who was given it.
struct OpenModelRef {
  const DecoderConfig* config;
  const Checkpoint* source;
};

// Compares models with one reference, whose run is made once and kept. Not thread-safe.
class BlockwiseEvaluator {
 public:
  struct Options {
    EvaluateOptions text;          // window > 0: the context that a Decoder would be loaded with
    const KvFormat* kv = nullptr;  // of the models
    int64_t activation_budget_bytes = 0;    // above it activations are spilled to
    std::string spill_directory;            // an existing directory
    std::function<void(int32_t)> on_block;  // blocks done of the run under way; may be empty
  };

  // Runs the reference in exact mode. Errors as Evaluate; ResourceExhausted if memory or disk is
  // short.
  static absl::StatusOr<std::unique_ptr<BlockwiseEvaluator>> Make(
      Backend& backend, OpenModelRef reference, const std::vector<Document>& documents,
      Options options);

  // What nibble::Evaluate gives for decoders of `model` in `mode` and of the reference in exact
  // mode, both loaded with max_context = options.text.window.
  absl::StatusOr<Evaluation> Evaluate(OpenModelRef model, Mode mode);

 private:
  BlockwiseEvaluator(Backend& backend, OpenModelRef reference, Options options)
      : backend_(backend), reference_(reference), options_(std::move(options)) {}
  // The hidden states of all windows after all blocks.
  absl::StatusOr<std::unique_ptr<ActivationStore>> RunBlocks(OpenModelRef model, Mode mode,
                                                             const KvFormat& kv);

  Backend& backend_;
  const OpenModelRef reference_;
  const Options options_;
  std::vector<EvaluationWindow> windows_;
  int64_t rows_ = 0;  // predictions
  std::unique_ptr<ActivationStore> reference_states_;
};

}  // namespace nibble
