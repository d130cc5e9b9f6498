// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace nibble {

// The real path of `path`, which must lie beneath `root` even after symbolic links have been
// followed (openat2, RESOLVE_BENEATH). InvalidArgument if it does not, NotFound if it does not
// exist, PermissionDenied without a root.
absl::StatusOr<std::string> ResolveBeneath(const std::string& root, const std::string& path);

}  // namespace nibble
