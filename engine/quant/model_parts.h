// SPDX-License-Identifier: Apache-2.0
// What a model has beside its blocks: embedding, head, final norm.
#pragma once

#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/artifact/checkpoint.h"
#include "engine/model/config.h"
#include "engine/quant/block_quantizer.h"
#include "engine/quant/quantized_weight.h"
#include "engine/quant/recipe.h"

namespace nibble {

struct ModelParts {
  QuantizedWeight embedding;
  std::optional<QuantizedWeight> head;  // nullopt: the head is the embedding
  StoredVector norm;
  std::vector<ModuleError> errors;
};

// Every module of the model is there, its input features are a multiple of its scheme's group, and
// every override matches something; InvalidArgument naming modules and what would fit.
absl::Status CheckModules(const Recipe& recipe, const DecoderConfig& config,
                          const Checkpoint& source);

// Rounds embedding and head without calibration: to nearest where the recipe does nothing else,
// otherwise under the scales of least squared error. A tied head stays tied if both have one
// scheme.
absl::StatusOr<ModelParts> QuantizeParts(const Recipe& recipe, const DecoderConfig& config,
                                         const Checkpoint& source, int threads);

}  // namespace nibble
