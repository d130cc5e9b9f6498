// SPDX-License-Identifier: Apache-2.0
// What a model has beside its blocks: embedding, head, final norm.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/artifact/artifact_writer.h"
#include "engine/artifact/checkpoint.h"
#include "engine/artifact/file_system.h"
#include "engine/model/config.h"
#include "engine/quant/block_quantizer.h"
#include "engine/quant/quantized_weight.h"
#include "engine/quant/recipe.h"

namespace nibble {

// Embedding or head as it is kept until the artifact is assembled: on disk, not in memory.
struct StoredPart {
  ModuleWeight module;
  ModuleError error;
  std::string path;  // a safetensors file of the module's tensors
};

struct ModelParts {
  StoredPart embedding;
  std::optional<StoredPart> head;  // nullopt: the head is the embedding
  StoredVector norm;
};

// Every module of the model is there, its input features are a multiple of its scheme's group, and
// every override matches something; InvalidArgument naming modules and what would fit.
absl::Status CheckModules(const Recipe& recipe, const DecoderConfig& config,
                          const Checkpoint& source);

struct PartsProblem {
  const Recipe* recipe;
  const DecoderConfig* config;
  const Checkpoint* source;
  int threads;
  std::function<absl::Status()> keep_going;  // asked before each slice of a weight's rows
  // Sees the rounded embedding, which is gone afterwards.
  std::function<absl::Status(const WeightView&)> on_embedding;
  WeightRounding* device = nullptr;         // as in RoundingProblem
  int64_t slice_values = int64_t{1} << 23;  // f32 values of a slice, about; no byte depends on it
};

// Rounds embedding and head without calibration: to nearest where the recipe does nothing else,
// otherwise under the scales of least squared error. A tied head stays tied if both have one
// scheme. Writes them into `directory`, which is created. Memory: one rounded module, and f32
// values of a slice of its rows.
absl::StatusOr<ModelParts> QuantizeParts(const PartsProblem& problem, FileSystem& fs,
                                         const std::string& directory);

}  // namespace nibble
