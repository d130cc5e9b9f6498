// SPDX-License-Identifier: Apache-2.0
// JSON from outside: bounded in size and depth, and errors that name the file.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

inline constexpr int64_t kMaxConfigBytes = int64_t{16} << 20;
inline constexpr int kMaxJsonDepth = 64;

// Whether brackets in `text` nest at most kMaxJsonDepth deep: copying, printing and comparing
// nlohmann::json recurse. InvalidArgument naming `label`.
absl::Status CheckJsonDepth(std::string_view text, std::string_view label);

// The object in `text`; InvalidArgument naming `label` if it is no JSON, no object or too deep.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view label);

// The object in the file; InvalidArgument also if the file is larger than `max_bytes`.
absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path,
                                              int64_t max_bytes = kMaxConfigBytes);

// A value as it may be shown in a message: one line of ASCII, cut to a hundred characters.
std::string ShownJson(const nlohmann::json& value);

}  // namespace nibble
