// SPDX-License-Identifier: Apache-2.0
// What the benchmarks of the CUDA backend have in common.
#pragma once

#include <cstdio>
#include <nlohmann/json.hpp>

namespace nibble {

// What one replay reads: far beyond the cache of any GPU, so that no launch finds its input there.
inline constexpr size_t kDistinctBytes = size_t{256} << 20;
inline constexpr int kMaxCopies = 64;
inline constexpr int kWarmups = 20;

// null without a ceiling to compare with.
inline nlohmann::json Ratio(double value, double of) {
  return of > 0 ? nlohmann::json(value / of) : nlohmann::json(nullptr);
}

// A line at once, so that a run that is cut off keeps what it has.
inline void PrintLine(const nlohmann::json& line) {
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

}  // namespace nibble
