// SPDX-License-Identifier: Apache-2.0
// What the blocks that draw from a row of logits keep in shared memory and exchange through device
// memory (row_sampler.h).
#pragma once

#include <cstdint>

#include "kernels/cuda/block.h"
#include "kernels/cuda/sample.h"

namespace nibble {

inline constexpr int kSampleBins = 1024;
inline constexpr int kSampleCandidates = 2048;
// The first histogram divides what lies within so many temperatures of the largest logit: few
// tokens with nearly all mass. The rest shares its last bin.
inline constexpr float kSampleWindow = 8.0f;
inline constexpr int kMostSampleParts = 16;  // blocks of a row

struct SampleHistogram {
  uint32_t count[kSampleBins];
  uint32_t low[kSampleBins];  // of the mass
  uint32_t high[kSampleBins];
};

// Orders from `first` in bins of 2^shift; the last bin reaches to `last`.
struct SampleLevel {
  SampleHistogram* histogram;
  uint64_t first;
  uint64_t last;
  int shift;
};

struct FoundBin {
  uint64_t first, last;  // of the bin
  uint64_t count;        // in the bin
  uint64_t before;       // in the bins before it, of what was looked for
  uint64_t mass_before;
};

struct SelectedToken {
  uint64_t order;  // of the token
  uint64_t mass;   // of the tokens before it and its own
};

// What the blocks of a row exchange, in device memory. Of what is added to there are three, taken
// in turn: when a block has passed the barrier behind the i-th, nobody reads the one before any
// more and its share of that is made 0; it is added to again behind the next barrier.
struct SampleExchange {
  uint64_t best[kMostSampleParts];
  uint64_t possible[kMostSampleParts];  // and 2^32 if a logit is bad
  uint64_t mass[kMostSampleParts];
  SampleHistogram histogram[3];
  uint64_t candidates[3][kSampleCandidates];
  uint32_t held[3];
  int32_t arrived;  // at barriers
  int32_t done;     // blocks
};

struct SampleParams {
  SampleLaunch launch;
  int parts;     // blocks of a row
  int64_t part;  // logits of a block, a multiple of 4
  bool cached;   // in shared memory
};

struct alignas(16) SampleShared {
  uint64_t scratch[kBlockScratch];
  uint64_t candidates[kSampleCandidates];
  SampleHistogram window;
  SampleHistogram finer;
  FoundBin found;
  SelectedToken selected;
  uint32_t held;
  int32_t listed;  // whether SamplingRow::unlisted is one of the seen tokens
};

}  // namespace nibble
