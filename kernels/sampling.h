// SPDX-License-Identifier: Apache-2.0
// The parts of sampling that host and device must agree on: random numbers and what parameters do
// to a logit.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/philox.h"

namespace nibble {

// Uniform in [0, 1) with 53 bits, a function of (seed, choice, position, draw) alone.
NIBBLE_HD inline double UniformAt(uint64_t seed, uint32_t choice, uint32_t position,
                                  uint32_t draw) {
  const Philox4 bits = Philox4x32(Philox4{{position, choice, draw, 0}}, static_cast<uint32_t>(seed),
                                  static_cast<uint32_t>(seed >> 32));
  const uint64_t mantissa = (uint64_t{bits.word[0]} << 21) | (bits.word[1] >> 11);
  return static_cast<double>(mantissa) * (1.0 / 9007199254740992.0);  // 2^-53
}

// The logit of a token that occurs in prompt or output, `count` times in the output. Repetition as
// in CTRL (Keskar et al. 2019, arXiv 1909.05858): positive logits are divided, others multiplied.
// A finite logit stays finite: no parameters leave nothing to draw from.
NIBBLE_HD inline float Penalize(float logit, int32_t count, float repetition, float presence,
                                float frequency) {
  float result = logit > 0.0f ? logit / repetition : logit * repetition;
  if (count > 0) result -= presence + frequency * static_cast<float>(count);
  constexpr float kLargest = 3.402823466e38f;
  if (result > kLargest && logit <= kLargest) return kLargest;
  if (result < -kLargest && logit >= -kLargest) return -kLargest;
  return result;
}

}  // namespace nibble
