// SPDX-License-Identifier: Apache-2.0
#include "services/cli/exit_codes.h"

#include <gtest/gtest.h>

#include <utility>

namespace nibble {
namespace {

TEST(ExitCodesTest, EveryStatusHasTheCodeThatTheManualSays) {
  using Code = absl::StatusCode;
  const std::pair<Code, int> table[] = {
      {Code::kOk, 0},
      {Code::kInternal, 1},
      {Code::kUnknown, 1},
      {Code::kDataLoss, 1},
      {Code::kFailedPrecondition, 1},
      {Code::kAborted, 1},
      {Code::kUnimplemented, 1},
      {Code::kInvalidArgument, 2},
      {Code::kOutOfRange, 2},
      {Code::kAlreadyExists, 2},
      {Code::kNotFound, 3},
      {Code::kUnavailable, 4},
      {Code::kResourceExhausted, 4},
      {Code::kDeadlineExceeded, 4},
      {Code::kUnauthenticated, 5},
      {Code::kPermissionDenied, 5},
      {Code::kCancelled, 7},
  };
  for (const auto& [code, exit] : table) {
    EXPECT_EQ(ExitCodeFor(absl::Status(code, "")), exit) << absl::StatusCodeToString(code);
  }
}

}  // namespace
}  // namespace nibble
