// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace nibble {

// Reads JSON that somebody else wrote. `what` names the document in errors. At most 256 MiB and
// 64 levels deep; ill-formed UTF-8 is an error. Never throws.
absl::StatusOr<nlohmann::json> ParseUntrustedJson(std::string_view text, std::string_view what);

// The member `key` of `object`, or nullptr where it is missing, null, or `object` is no object.
const nlohmann::json* FindMember(const nlohmann::json& object, const char* key);

// Typed members. Missing and null give `fallback`; another type is an error naming `key`.
absl::StatusOr<bool> BoolMember(const nlohmann::json& object, const char* key, bool fallback);
absl::StatusOr<std::string> StringMember(const nlohmann::json& object, const char* key,
                                         std::string_view fallback);

}  // namespace nibble
