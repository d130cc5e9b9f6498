// SPDX-License-Identifier: Apache-2.0
// JSON that somebody else wrote: bounded in size and depth, with errors that name the document and
// the field. Nothing here throws.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

inline constexpr int64_t kMaxConfigBytes = int64_t{16} << 20;  // of a configuration file
inline constexpr int64_t kMaxJsonBytes = int64_t{256} << 20;   // of any document
inline constexpr int kMaxJsonDepth = 64;

// What a second member of the document with the same name does. (In objects further inside, the
// last one counts.)
enum class RepeatedMembers { kLastCounts, kRefused };

// The object in `text`. InvalidArgument naming `label` if it is larger than kMaxJsonBytes, nests
// more than kMaxJsonDepth deep (copying, printing and comparing nlohmann::json recurse), is no
// JSON in well-formed UTF-8, or no object.
absl::StatusOr<nlohmann::json> ParseJsonObject(
    std::string_view text, std::string_view label,
    RepeatedMembers repeated = RepeatedMembers::kLastCounts);

// The object in the file; InvalidArgument also if the file is larger than `max_bytes`, and the
// errors of ReadSmallFile.
absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path,
                                              int64_t max_bytes = kMaxConfigBytes);

// The member `key` of `object`, or nullptr where it is missing, null, or `object` is no object.
const nlohmann::json* FindMember(const nlohmann::json& object, const char* key);

// Typed members. Missing and null give `fallback`; another type is InvalidArgument naming `key`.
absl::StatusOr<bool> BoolMember(const nlohmann::json& object, const char* key, bool fallback);
absl::StatusOr<std::string> StringMember(const nlohmann::json& object, const char* key,
                                         std::string_view fallback);

// A value as it may be shown in a message: one line of ASCII, cut to a hundred characters.
std::string ShownJson(const nlohmann::json& value);

}  // namespace nibble
