// SPDX-License-Identifier: Apache-2.0
// Passing an error on, in one line. The macros may be nested (lambdas): names carry the line.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define NIBBLE_CONCAT_INNER(a, b) a##b
#define NIBBLE_CONCAT(a, b) NIBBLE_CONCAT_INNER(a, b)

#define NIBBLE_RETURN_IF_ERROR(...) \
  NIBBLE_RETURN_IF_ERROR_INNER(NIBBLE_CONCAT(status_, __LINE__), __VA_ARGS__)
#define NIBBLE_RETURN_IF_ERROR_INNER(holder, ...)                         \
  do {                                                                    \
    if (absl::Status holder = (__VA_ARGS__); !holder.ok()) return holder; \
  } while (false)

// NIBBLE_ASSIGN_OR_RETURN(int x, F()); `lhs` must not hold a comma outside brackets.
#define NIBBLE_ASSIGN_OR_RETURN(lhs, ...) \
  NIBBLE_ASSIGN_OR_RETURN_INNER(NIBBLE_CONCAT(status_or_, __LINE__), lhs, __VA_ARGS__)
#define NIBBLE_ASSIGN_OR_RETURN_INNER(holder, lhs, ...) \
  auto holder = (__VA_ARGS__);                          \
  if (!holder.ok()) return holder.status();             \
  lhs = *std::move(holder)
