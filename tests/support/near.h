// SPDX-License-Identifier: Apache-2.0
// The one tolerance of the numeric tests: from the type that was accumulated in and the length of
// the sum.
#pragma once

#include <gmock/gmock.h>

#include <cmath>
#include <cstdint>

namespace nibble::testing {

inline constexpr double kEpsilonF32 = 1.1920929e-7;  // 2^-23
inline constexpr double kEpsilonBF16 = 7.8125e-3;    // 2^-7

// The error allowed in a sum of `terms` products whose absolute values add up to `magnitude`: each
// product and each addition rounds by half an epsilon, and errors of random sign grow with the
// square root of their number (Higham and Mary 2019); 4 standard deviations, and 8 roundings that
// do not depend on the length.
inline double SumTolerance(double epsilon, int64_t terms, double magnitude) {
  return epsilon * magnitude * (8.0 + 2.0 * std::sqrt(static_cast<double>(terms))) + 1e-30;
}

// |actual - expected| <= tolerance; false for NaN.
inline ::testing::AssertionResult Near(double actual, double expected, double tolerance) {
  if (std::abs(actual - expected) <= tolerance) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << actual << " is not within " << tolerance << " of " << expected;
}

}  // namespace nibble::testing
