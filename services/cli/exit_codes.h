// SPDX-License-Identifier: Apache-2.0
// What `nibble` exits with, for scripts.
#pragma once

#include "absl/status/status.h"

namespace nibble {

enum ExitCode : int {
  kExitOk = 0,
  kExitFailure = 1,      // it was tried and did not work
  kExitUsage = 2,        // the command line or an input is wrong
  kExitNotFound = 3,     // what was named does not exist
  kExitUnavailable = 4,  // the server cannot be reached, is draining or is overloaded
  kExitDenied = 5,       // the token is missing, unknown or lacks the role
  kExitGateFailed = 6,   // the job ran, its quality gate failed
  kExitCancelled = 7,    // the job or request was cancelled
  kExitInterrupted = 130,
};

inline ExitCode ExitCodeFor(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kAlreadyExists:
      return kExitUsage;
    case absl::StatusCode::kNotFound:
      return kExitNotFound;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kDeadlineExceeded:
      return kExitUnavailable;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return kExitDenied;
    case absl::StatusCode::kCancelled:
      return kExitCancelled;
    default:
      return kExitFailure;
  }
}

}  // namespace nibble
