// SPDX-License-Identifier: Apache-2.0
// What is sent, and when: decided by the seed alone, never by how the server does.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "loadtest/options.h"

namespace nibble::load {

struct Plan {
  double arrival = 0;  // open loop: seconds after the start at which it is to be sent
  std::vector<int32_t> prompt;
  int32_t max_tokens = 1;
  uint64_t seed = 0;
  std::optional<int32_t> abort_after;  // cancel it when so many tokens have come
};

class Schedule {
 public:
  Schedule(const Options& options, int32_t vocabulary);
  Plan Next();

 private:
  int32_t Around(int mean);
  double Uniform();  // [0, 1)

  const Options options_;
  const int32_t vocabulary_;
  std::mt19937_64 random_;
  double clock_ = 0;
};

}  // namespace nibble::load
