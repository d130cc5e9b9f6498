// SPDX-License-Identifier: Apache-2.0
// Where a decoder's weights come from: a checkpoint on disk, or a block that the quantizer is
// working on.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/scheme.h"

namespace nibble {

// Modules and tensors carry the names of Hugging Face Llama checkpoints, whatever the file format:
// "model.embed_tokens", "model.layers.3.self_attn.q_proj", "model.norm.weight", "lm_head".
// Thread-safe for concurrent reads.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  // The weight of a linear or embedding module, in whatever scheme it is stored. The view lives as
  // long as the source. NotFound if there is no such module; InvalidArgument if its tensors
  // contradict each other or the scheme.
  virtual absl::StatusOr<WeightView> Weight(std::string_view module) const = 0;

  // A one-dimensional tensor (norm weight, bias) as f32.
  virtual absl::StatusOr<std::vector<float>> Vector(std::string_view tensor) const = 0;

  // Whether a tensor ("model.layers.0.self_attn.q_proj.bias") or the weight of a module exists.
  virtual bool HasVector(std::string_view tensor) const = 0;
  virtual bool HasWeight(std::string_view module) const = 0;
};

}  // namespace nibble
