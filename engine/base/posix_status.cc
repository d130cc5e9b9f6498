// SPDX-License-Identifier: Apache-2.0
#include "engine/base/posix_status.h"

#include <cerrno>
#include <string>
#include <system_error>

#include "absl/strings/cord.h"
#include "engine/base/cat.h"

namespace nibble {
namespace {

// Names the payload that marks a full disk.
constexpr char kDiskFull[] = "nibble/disk-full";

absl::StatusCode CodeOf(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::StatusCode::kNotFound;
    case EEXIST:
    case ENOTEMPTY:
      return absl::StatusCode::kAlreadyExists;
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
  const std::string message =
      Cat(path, ": cannot ", action, ": ", std::generic_category().message(error));
  if (error == ENOSPC || error == EDQUOT) return DiskFullError(message);
  return absl::Status(CodeOf(error), message);
}

absl::Status DiskFullError(std::string_view message) {
  absl::Status status(absl::StatusCode::kResourceExhausted, Cat(message));
  status.SetPayload(kDiskFull, absl::Cord());
  return status;
}

bool IsDiskFull(const absl::Status& status) { return status.GetPayload(kDiskFull).has_value(); }

}  // namespace nibble
