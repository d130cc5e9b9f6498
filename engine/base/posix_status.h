// SPDX-License-Identifier: Apache-2.0
// errno as a status, and the one shortage that a job can wait out.
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace nibble {

// "PATH: cannot ACTION: TEXT OF ERRNO", with the codes that file_system.h promises.
absl::Status ErrnoStatus(int error, std::string_view action, std::string_view path);

// A ResourceExhausted that IsDiskFull() tells from shortages of memory or descriptors. ErrnoStatus
// of ENOSPC and EDQUOT is one.
absl::Status DiskFullError(std::string_view message);
bool IsDiskFull(const absl::Status& status);

}  // namespace nibble
