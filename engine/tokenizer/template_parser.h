// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/tokenizer/template_ast.h"

namespace nibble::jinja {

// At most 256 KiB; statements and expressions nest at most 100 deep. Errors name the line.
absl::StatusOr<std::shared_ptr<const Template>> ParseTemplate(std::string_view source);

}  // namespace nibble::jinja
