// SPDX-License-Identifier: Apache-2.0
// Draws one token from one row of logits.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/tier.h"
#include "kernels/ops.h"

namespace nibble {

// One per thread; grows to the vocabulary and is kept.
struct SamplerScratch {
  std::vector<float> weights;       // e^((logit - max) / temperature)
  std::vector<int32_t> candidates;  // token ids, most probable first
};

// The semantics of SamplingRow; overwrites logits. `tokens` is SampleArgs::tokens.
SampleResult SampleRow(const KernelTable& kernels, const SamplingRow& params, const int32_t* tokens,
                       float* logits, int64_t vocabulary, SamplerScratch& scratch);

}  // namespace nibble
