// SPDX-License-Identifier: Apache-2.0
// errno as a status.
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace nibble {

// "PATH: cannot ACTION: TEXT OF ERRNO", with the codes that file_system.h promises.
absl::Status ErrnoStatus(int error, std::string_view action, std::string_view path);

}  // namespace nibble
