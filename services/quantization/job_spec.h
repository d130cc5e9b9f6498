// SPDX-License-Identifier: Apache-2.0
// nibble.v1.JobSpec <-> what the engine understands.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/quant/pipeline.h"
#include "engine/quant/recipe.h"
#include "nibble/v1/quantization.pb.h"

namespace nibble {

// The spec with every default filled in. Checks all that can be checked without looking at disk or
// store: names, ranges, combinations. InvalidArgument names field, value and what is allowed.
absl::StatusOr<v1::JobSpec> CompleteJobSpec(const v1::JobSpec& spec);

// The recipe that a completed spec stands for.
absl::StatusOr<Recipe> RecipeOf(const v1::JobSpec& spec);

// How a recipe looks in the contract.
v1::Recipe RecipeToProto(const Recipe& recipe);

// Recipe, gate and figures of a completed spec; paths and digest are left empty.
absl::StatusOr<PipelineSpec> PipelineSpecOf(const v1::JobSpec& spec);

}  // namespace nibble
