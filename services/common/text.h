// SPDX-License-Identifier: Apache-2.0
// Debian's Abseil has a string_view of its own; these go between it and std::string_view.
#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace nibble {

inline absl::string_view AbslView(std::string_view text) { return {text.data(), text.size()}; }
inline std::string_view StdView(absl::string_view text) { return {text.data(), text.size()}; }

}  // namespace nibble
