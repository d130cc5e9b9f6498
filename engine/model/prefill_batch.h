// SPDX-License-Identifier: Apache-2.0
// Lays out whole sequences, or chunks of them, as one step: what evaluation and calibration need
// instead of a scheduler.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace nibble {

class PrefillBatch {
 public:
  // A run of one sequence's tokens. Its keys and values live in consecutive blocks from first_block
  // on, so a later chunk of the same sequence names the same first_block.
  struct Chunk {
    std::span<const int32_t> tokens;
    int32_t start = 0;  // position of tokens[0]
    int32_t first_block = 0;
  };

  static absl::StatusOr<std::unique_ptr<PrefillBatch>> Make(Backend& backend, int32_t max_rows,
                                                            int32_t max_sequences,
                                                            int32_t max_context);

  // The step for these chunks: at most max_sequences of them, at most max_rows tokens together,
  // none ending after max_context. With `logits`, every row's logits are wanted. The view is valid
  // until the next Set.
  const BatchView& Set(std::span<const Chunk> chunks, bool logits);

  static constexpr int32_t BlocksFor(int32_t tokens) {
    return (tokens + kKvBlockTokens - 1) / kKvBlockTokens;
  }
  int32_t max_rows() const { return max_rows_; }
  int32_t max_context() const { return max_blocks_ * kKvBlockTokens; }

 private:
  PrefillBatch() = default;
  Backend* backend_ = nullptr;
  int32_t max_rows_ = 0, max_sequences_ = 0, max_blocks_ = 0;
  std::unique_ptr<Buffer> device_;
  std::vector<int32_t> host_;  // the device's arrays, one after the other
  BatchView view_;
};

}  // namespace nibble
