// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace nibble {

struct OpenedFile {
  int fd;  // whoever asked for it closes it
  int64_t size;
};

// Opens a regular file for reading. NotFound, PermissionDenied; InvalidArgument for anything else
// that has a name: a FIFO is refused, not waited for.
absl::StatusOr<OpenedFile> OpenRegularFile(const std::string& path);

// The contents of a small file. The errors of OpenRegularFile, and InvalidArgument, naming the
// limit, if it is larger than `max_bytes`.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, int64_t max_bytes);

}  // namespace nibble
