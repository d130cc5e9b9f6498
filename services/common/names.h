// SPDX-License-Identifier: Apache-2.0
// Resource names: "collection/identifier". No identifier can name a path outside its directory.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

inline constexpr size_t kMaxIdentifier = 64;

// 1..64 characters of a-z A-Z 0-9 . _ -, the first a letter or digit. InvalidArgument names
// `field` and the value.
absl::Status CheckIdentifier(std::string_view field, std::string_view identifier);

// The identifier of "collection/identifier"; with `bare` also of "identifier" alone. NotFound is
// never returned: whether it exists is another question. InvalidArgument names `field`.
absl::StatusOr<std::string> ParseName(std::string_view field, std::string_view name,
                                      std::string_view collection, bool bare = false);

}  // namespace nibble
