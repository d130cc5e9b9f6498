// SPDX-License-Identifier: Apache-2.0
#include "loadtest/schedule.h"

#include <algorithm>
#include <cmath>

namespace nibble::load {

Schedule::Schedule(const Options& options, int32_t vocabulary)
    : options_(options), vocabulary_(vocabulary), random_(options.seed) {}

double Schedule::Uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

int32_t Schedule::Around(int mean) {
  const double factor = 1 + options_.spread * (2 * Uniform() - 1);
  return std::max(1, static_cast<int32_t>(std::lround(mean * factor)));
}

Plan Schedule::Next() {
  Plan plan;
  if (options_.rate > 0) {
    clock_ += -std::log(1 - Uniform()) / options_.rate;  // exponential gaps: Poisson arrivals
    plan.arrival = clock_;
  }
  plan.prompt.resize(static_cast<size_t>(Around(options_.prompt_tokens)));
  for (int32_t& token : plan.prompt) {
    token = static_cast<int32_t>(random_() % static_cast<uint64_t>(vocabulary_));
  }
  plan.max_tokens = Around(options_.max_tokens);
  plan.seed = random_();
  const bool abort = Uniform() < options_.abort_fraction;
  const double after = Uniform();
  if (abort) plan.abort_after = static_cast<int32_t>(after * plan.max_tokens);
  return plan;
}

}  // namespace nibble::load
