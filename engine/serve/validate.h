// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/status/status.h"
#include "engine/serve/engine.h"
#include "engine/serve/request.h"
#include "engine/serve/runner.h"

namespace nibble {

// Positions that one sequence may have: the runner's context, or what fits into its KV pool.
int32_t UsableContext(const RunnerLimits& limits);

// Engine::Validate: InvalidArgument, or OutOfRange where the context is too short. `has_text`:
// there is a text decoder, without which there are no stop strings.
absl::Status ValidateRequest(const GenerationRequest& request, const EngineOptions& options,
                             const RunnerLimits& limits, bool has_text);

// InvalidArgument naming the option, its value and the allowed range.
absl::Status ValidateOptions(const EngineOptions& options, const RunnerLimits& limits);

}  // namespace nibble
