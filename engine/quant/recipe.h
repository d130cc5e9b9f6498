// SPDX-License-Identifier: Apache-2.0
// A recipe: which transforms, which rounder, which scheme where. Pure data; the algorithms are
// listed in algorithm.h.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

// A scheme for the modules whose name relative to the model ("layers.3.mlp.down_proj", "lm_head")
// matches the pattern: `*` matches any run of characters, `?` one. Later overrides win.
struct SchemeOverride {
  std::string pattern;
  std::string scheme;
};

struct AwqOptions {
  int grid = 20;     // 1..100 exponents 0, 1/grid, ...
  bool clip = true;  // search a clip ratio after scaling, except q and k
};

struct SmoothQuantOptions {
  double alpha = -1.0;  // 0..1; negative = searched per group over a grid
};

struct GptqOptions {
  int block_columns = 128;  // 16..1024 lazy-update block
  double damping = 0.01;    // > 0, fraction of the mean diagonal; raised automatically when the
                            // Cholesky factor fails
  bool act_order = true;    // columns by descending Hessian diagonal, with static groups
  bool mse_clip = true;     // group scales by the clip search instead of absmax
};

struct LlmInt8Options {
  double threshold = 6.0;  // > 0; an input feature whose largest magnitude reaches it is an outlier
};

enum class Rounder : uint8_t { kRtn, kMse, kGptq };
enum class Transform : uint8_t { kAwq, kSmoothQuant };

struct Recipe {
  std::string name = "custom";        // a built-in's name, or "custom"
  std::vector<Transform> transforms;  // applied in this order
  Rounder rounder = Rounder::kRtn;
  AwqOptions awq;
  SmoothQuantOptions smoothquant;
  GptqOptions gptq;
  LlmInt8Options llm_int8;           // of schemes with outliers
  std::string scheme = "int4-g128";  // of the blocks' linears
  std::vector<SchemeOverride> overrides;
  std::string embedding_scheme = "bf16";
  std::string head_scheme =
      "bf16";  // a tied head whose scheme differs from the embedding's is untied
  std::string kv_format = "bf16";
  bool true_sequential =
      true;  // observe each input group after the groups before it were quantized

  bool needs_calibration() const;
  nlohmann::json ToJson() const;  // canonical: sorted keys, every field
  static absl::StatusOr<Recipe> FromJson(const nlohmann::json& json);  // unknown keys are errors
};

// "rtn", "mse", "gptq", "awq", "awq-gptq", "smoothquant", "smoothquant-gptq".
absl::StatusOr<Recipe> BuiltinRecipe(std::string_view name);
std::vector<std::string_view> BuiltinRecipeNames();

// Checks names, ranges and combinations (SmoothQuant needs a scheme that quantizes activations);
// messages list what is allowed.
absl::Status Validate(const Recipe& recipe);

// The scheme name of a module under this recipe.
const std::string& SchemeFor(const Recipe& recipe, std::string_view module);

}  // namespace nibble
