// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace nibble {

// The same error with its payloads, its message beginning with where it happened: "WHERE: MESSAGE".
absl::Status Within(std::string_view where, const absl::Status& status);

}  // namespace nibble
