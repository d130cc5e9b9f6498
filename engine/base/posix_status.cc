// SPDX-License-Identifier: Apache-2.0
#include "engine/base/posix_status.h"

#include <cerrno>
#include <string>
#include <system_error>

#include "engine/base/cat.h"

namespace nibble {
namespace {

absl::StatusCode CodeOf(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::StatusCode::kNotFound;
    case EEXIST:
    case ENOTEMPTY:
      return absl::StatusCode::kAlreadyExists;
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return absl::StatusCode::kResourceExhausted;
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::StatusCode::kPermissionDenied;
    case ENAMETOOLONG:
    case ELOOP:
    case EISDIR:
      return absl::StatusCode::kInvalidArgument;
    default:
      return absl::StatusCode::kInternal;
  }
}

}  // namespace

absl::Status ErrnoStatus(int error, std::string_view action, std::string_view path) {
  return absl::Status(CodeOf(error),
                      Cat(path, ": cannot ", action, ": ", std::generic_category().message(error)));
}

}  // namespace nibble
