// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/template_ast.h"

namespace nibble::jinja {

// Renders a parsed template with these variables. `now`: seconds since 1970 UTC for
// strftime_now(). Errors as ChatTemplate::Render.
absl::StatusOr<std::string> RenderTemplate(const Template& parsed,
                                           std::vector<std::pair<std::string, Value>> variables,
                                           std::optional<int64_t> now);

}  // namespace nibble::jinja
