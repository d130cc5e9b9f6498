// SPDX-License-Identifier: Apache-2.0
// One decoder block: observe, transform, round.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/artifact/checkpoint.h"
#include "engine/model/activation_store.h"
#include "engine/model/blockwise_forward.h"
#include "engine/model/decoder.h"
#include "engine/quant/algorithm.h"
#include "engine/quant/quantized_weight.h"
#include "engine/quant/recipe.h"
#include "engine/quant/statistics.h"

namespace nibble {

// A one-dimensional tensor as it will be stored.
struct StoredVector {
  DType dtype = DType::kF32;  // kF32 | kF16 | kBF16; values are representable in it
  std::vector<float> values;
};

// Its bytes in that type.
std::string StoredBytes(const StoredVector& vector);

// How far a linear's output moved: ||x dW^T||^2 / ||x W^T||^2 over the calibration tokens where its
// Hessian was known, otherwise ||dW||^2 / ||W||^2.
struct ModuleError {
  std::string module;  // "model.layers.3.mlp.down_proj"
  std::string scheme;
  double relative_error = 0;
  bool of_output = false;
  int64_t outliers = 0;  // input features that were not rounded
};

struct QuantizedBlock {
  std::map<std::string, QuantizedWeight> weights;  // by module
  std::map<std::string, StoredVector> vectors;     // by tensor
  std::vector<ModuleError> errors;                 // in the order of the forward pass
};

// A module's weight as f32, every value finite; InvalidArgument naming the module otherwise. Of its
// rows [first, first + count), or of all of them.
absl::StatusOr<Matrix> LoadRows(const WeightView& weight, const std::string& module, int64_t first,
                                int64_t count, int threads);
absl::StatusOr<Matrix> LoadWeight(const WeightSource& source, const std::string& module,
                                  int threads);

// How linears multiply while the model calibrates: exactly where activations are f32, which gives
// the same bits in every tier of a CPU; as they serve where the backend rounds activations anyway.
Mode CalibrationMode(const Backend& backend);

// Rounds one weight by `rounder` (whose needs the problem meets), or converts it if its scheme is
// not quantized, and measures the error.
struct RoundedModule {
  QuantizedWeight weight;
  ModuleError error;
};
absl::StatusOr<RoundedModule> RoundModule(const std::string& module, Rounder rounder,
                                          const RoundingProblem& problem);

class BlockQuantizer {
 public:
  struct Context {
    const Recipe* recipe;
    const DecoderConfig* config;
    const Checkpoint* source;
    Backend* backend;
    BlockwiseForward* calibration;  // nullptr where the recipe needs none
    int threads;
    std::function<void(const ModuleError&)> on_module;  // after each module
    std::function<void(std::string_view)> log;
    std::function<absl::Status()> keep_going;
  };
  explicit BlockQuantizer(const Context& context);

  // `stream` holds the block's inputs as the quantized prefix gives them (not read without
  // calibration). Errors name the module.
  absl::StatusOr<QuantizedBlock> Quantize(int layer, ActivationStore* stream);

 private:
  struct Block;
  absl::StatusOr<Block> Load(int layer) const;
  // Statistics of the groups that are wanted, with the block as far as it is done.
  absl::StatusOr<std::map<InputGroup, InputStatistics>> Observe(
      const Block& block, const StatisticsCollector::Wanted& wanted, ActivationStore& stream);
  absl::Status ApplyTransforms(Block& block, ActivationStore& stream);
  absl::Status RoundGroup(Block& block, InputGroup group, const InputStatistics* input);
  // Whether a linear of the group is quantized, or has outliers.
  static bool IsQuantized(const Block& block, InputGroup group);
  static bool HasOutliers(const Block& block, InputGroup group);

  const Context context_;
  std::map<std::string, DType> vector_types_;  // as the source stores them
};

}  // namespace nibble
