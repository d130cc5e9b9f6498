// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/job_spec.h"

#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/cat.h"
#include "services/common/names.h"
#include "services/quantization/source_files.h"
#include "services/quantization/status_macros.h"

namespace nibble {
namespace {

template <typename Number>
absl::Status CheckRange(std::string_view field, Number value, Number low, Number high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(Cat(field, ": ", value, " is not within ", low, "..", high));
}

// 0 stands for the default.
template <typename Number>
Number Or(Number value, Number otherwise) {
  return value == 0 ? otherwise : value;
}
std::string Or(const std::string& value, const char* otherwise) {
  return value.empty() ? otherwise : value;
}

absl::Status CheckText(std::string_view field, const v1::TextSource& text) {
  switch (text.source_case()) {
    case v1::TextSource::kCalibrationSet:
      return ParseName(Cat(field, ".calibration_set"), text.calibration_set(), "calibrationSets")
          .status();
    case v1::TextSource::kPath:
      return CheckRelativePath(Cat(field, ".path"), text.path());
    case v1::TextSource::SOURCE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(Cat(field, ": name a calibration_set or a path"));
}

absl::Status CheckGate(const v1::Gate& gate) {
  const auto positive = [](std::string_view field, bool set, double value) -> absl::Status {
    if (!set || (std::isfinite(value) && value > 0)) return absl::OkStatus();
    return absl::InvalidArgumentError(Cat(field, ": ", value, " must be finite and > 0"));
  };
  NIBBLE_RETURN_IF_ERROR(positive("spec.gate.max_perplexity_ratio", gate.has_max_perplexity_ratio(),
                                  gate.max_perplexity_ratio()));
  NIBBLE_RETURN_IF_ERROR(positive("spec.gate.max_kl", gate.has_max_kl(), gate.max_kl()));
  if (!gate.has_min_same_top()) return absl::OkStatus();
  return CheckRange("spec.gate.min_same_top", gate.min_same_top(), 0.0, 1.0);
}

absl::StatusOr<Recipe> CustomRecipe(const v1::Recipe& proto) {
  Recipe recipe;
  for (const int transform : proto.transforms()) {
    switch (transform) {
      case v1::Recipe::AWQ:
        recipe.transforms.push_back(Transform::kAwq);
        break;
      case v1::Recipe::SMOOTHQUANT:
        recipe.transforms.push_back(Transform::kSmoothQuant);
        break;
      default:
        return absl::InvalidArgumentError(absl::StrCat("spec.custom_recipe.transforms: ", transform,
                                                       " is neither AWQ (1) nor SMOOTHQUANT (2)"));
    }
  }
  switch (proto.rounder()) {
    case v1::Recipe::ROUNDER_UNSPECIFIED:
    case v1::Recipe::RTN:
      recipe.rounder = Rounder::kRtn;
      break;
    case v1::Recipe::MSE:
      recipe.rounder = Rounder::kMse;
      break;
    case v1::Recipe::GPTQ:
      recipe.rounder = Rounder::kGptq;
      break;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("spec.custom_recipe.rounder: ", static_cast<int>(proto.rounder()),
                       " is none of RTN (1), MSE (2), GPTQ (3)"));
  }
  if (proto.has_awq_grid()) recipe.awq.grid = proto.awq_grid();
  if (proto.has_awq_clip()) recipe.awq.clip = proto.awq_clip();
  if (proto.has_smoothquant_alpha()) recipe.smoothquant.alpha = proto.smoothquant_alpha();
  if (proto.has_gptq_block_columns()) recipe.gptq.block_columns = proto.gptq_block_columns();
  if (proto.has_gptq_damping()) recipe.gptq.damping = proto.gptq_damping();
  if (proto.has_gptq_act_order()) recipe.gptq.act_order = proto.gptq_act_order();
  if (proto.has_gptq_mse_clip()) recipe.gptq.mse_clip = proto.gptq_mse_clip();
  if (proto.has_llm_int8_threshold()) recipe.llm_int8.threshold = proto.llm_int8_threshold();
  if (proto.has_true_sequential()) recipe.true_sequential = proto.true_sequential();
  return recipe;
}

}  // namespace

absl::StatusOr<v1::JobSpec> CompleteJobSpec(const v1::JobSpec& spec) {
  v1::JobSpec complete = spec;
  switch (spec.source_case()) {
    case v1::JobSpec::kModel:
      NIBBLE_RETURN_IF_ERROR(ParseName("spec.model", spec.model(), "models").status());
      break;
    case v1::JobSpec::kModelPath:
      NIBBLE_RETURN_IF_ERROR(CheckRelativePath("spec.model_path", spec.model_path()));
      break;
    case v1::JobSpec::SOURCE_NOT_SET:
      return absl::InvalidArgumentError("spec: name a model or a model_path");
  }
  complete.set_scheme(Or(spec.scheme(), "int4-g128"));
  complete.set_embedding_scheme(Or(spec.embedding_scheme(), "bf16"));
  complete.set_head_scheme(Or(spec.head_scheme(), "bf16"));
  complete.set_kv_format(Or(spec.kv_format(), "bf16"));
  complete.set_calibration_samples(Or(spec.calibration_samples(), 128));
  complete.set_calibration_length(Or(spec.calibration_length(), 512));
  complete.set_evaluation_max_tokens(Or(spec.evaluation_max_tokens(), 16384));
  complete.set_activation_budget_bytes(
      Or(int64_t{spec.activation_budget_bytes()}, int64_t{1} << 30));

  NIBBLE_RETURN_IF_ERROR(
      CheckRange("spec.calibration_samples", complete.calibration_samples(), 1, 4096));
  NIBBLE_RETURN_IF_ERROR(
      CheckRange("spec.calibration_length", complete.calibration_length(), 16, 32768));
  NIBBLE_RETURN_IF_ERROR(
      CheckRange("spec.evaluation_max_tokens", complete.evaluation_max_tokens(), 1, 1 << 24));
  NIBBLE_RETURN_IF_ERROR(CheckRange("spec.activation_budget_bytes",
                                    int64_t{complete.activation_budget_bytes()}, int64_t{1} << 20,
                                    int64_t{1} << 40));
  NIBBLE_RETURN_IF_ERROR(
      CheckRange("spec.overrides: number of entries", spec.overrides_size(), 0, 256));
  if (!spec.artifact_id().empty()) {
    NIBBLE_RETURN_IF_ERROR(CheckIdentifier("spec.artifact_id", spec.artifact_id()));
  }
  if (spec.has_calibration())
    NIBBLE_RETURN_IF_ERROR(CheckText("spec.calibration", spec.calibration()));
  if (spec.has_evaluation())
    NIBBLE_RETURN_IF_ERROR(CheckText("spec.evaluation", spec.evaluation()));
  NIBBLE_RETURN_IF_ERROR(CheckGate(spec.gate()));
  const bool gated = spec.gate().has_max_perplexity_ratio() || spec.gate().has_max_kl() ||
                     spec.gate().has_min_same_top();
  if (gated && !spec.has_evaluation() && !spec.has_calibration()) {
    return absl::InvalidArgumentError(
        "spec.gate: a gate needs text to decide on: spec.evaluation, or what the samples of "
        "spec.calibration leave over");
  }

  NIBBLE_ASSIGN_OR_RETURN(const Recipe recipe, RecipeOf(complete));
  if (recipe.needs_calibration() && !spec.has_calibration()) {
    return absl::InvalidArgumentError(absl::StrCat("spec.calibration: recipe '", recipe.name,
                                                   "' with scheme '", recipe.scheme,
                                                   "' needs calibration text"));
  }
  return complete;
}

absl::StatusOr<Recipe> RecipeOf(const v1::JobSpec& spec) {
  Recipe recipe;
  switch (spec.method_case()) {
    case v1::JobSpec::kRecipe: {
      NIBBLE_ASSIGN_OR_RETURN(recipe, BuiltinRecipe(spec.recipe()));
      break;
    }
    case v1::JobSpec::kCustomRecipe: {
      NIBBLE_ASSIGN_OR_RETURN(recipe, CustomRecipe(spec.custom_recipe()));
      break;
    }
    case v1::JobSpec::METHOD_NOT_SET:
      return absl::InvalidArgumentError("spec: name a recipe or give a custom_recipe");
  }
  recipe.scheme = spec.scheme();
  recipe.embedding_scheme = spec.embedding_scheme();
  recipe.head_scheme = spec.head_scheme();
  recipe.kv_format = spec.kv_format();
  for (const v1::SchemeOverride& entry : spec.overrides()) {
    recipe.overrides.push_back({entry.pattern(), entry.scheme()});
  }
  NIBBLE_RETURN_IF_ERROR(Validate(recipe));
  return recipe;
}

v1::Recipe RecipeToProto(const Recipe& recipe) {
  v1::Recipe proto;
  for (const Transform transform : recipe.transforms) {
    proto.add_transforms(transform == Transform::kAwq ? v1::Recipe::AWQ : v1::Recipe::SMOOTHQUANT);
  }
  switch (recipe.rounder) {
    case Rounder::kRtn:
      proto.set_rounder(v1::Recipe::RTN);
      break;
    case Rounder::kMse:
      proto.set_rounder(v1::Recipe::MSE);
      break;
    case Rounder::kGptq:
      proto.set_rounder(v1::Recipe::GPTQ);
      break;
  }
  proto.set_awq_grid(recipe.awq.grid);
  proto.set_awq_clip(recipe.awq.clip);
  proto.set_smoothquant_alpha(recipe.smoothquant.alpha);
  proto.set_gptq_block_columns(recipe.gptq.block_columns);
  proto.set_gptq_damping(recipe.gptq.damping);
  proto.set_gptq_act_order(recipe.gptq.act_order);
  proto.set_gptq_mse_clip(recipe.gptq.mse_clip);
  proto.set_llm_int8_threshold(recipe.llm_int8.threshold);
  proto.set_true_sequential(recipe.true_sequential);
  return proto;
}

absl::StatusOr<PipelineSpec> PipelineSpecOf(const v1::JobSpec& spec) {
  PipelineSpec result;
  NIBBLE_ASSIGN_OR_RETURN(result.recipe, RecipeOf(spec));
  result.calibration_samples = spec.calibration_samples();
  result.calibration_length = spec.calibration_length();
  result.eval_max_tokens = spec.evaluation_max_tokens();
  result.gate.max_perplexity_ratio = spec.gate().max_perplexity_ratio();
  result.gate.max_kl = spec.gate().max_kl();
  result.gate.min_same_top = spec.gate().min_same_top();
  result.activation_budget_bytes = spec.activation_budget_bytes();
  return result;
}

}  // namespace nibble
