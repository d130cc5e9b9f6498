// SPDX-License-Identifier: Apache-2.0
// Reductions and scans over a block, of integers: no order of additions shows in the result. Every
// thread of the block calls them; `scratch` is kBlockScratch values of shared memory, free again
// when the call returns.
#pragma once

#include "kernels/cuda/simt.h"

namespace nibble {

inline constexpr int kBlockScratch = 32;  // the warps of the largest block

// Every thread gets the result of combine, which commutes.
template <typename Combine>
NIBBLE_DEVICE uint64_t BlockReduce(uint64_t value, uint64_t* scratch, Combine combine) {
  for (int mask = simt::kWarp / 2; mask > 0; mask /= 2) {
    value = combine(value, simt::ShuffleXor(value, mask));
  }
  if (simt::Lane() == 0) scratch[simt::WarpIndex()] = value;
  simt::SyncThreads();
  value = scratch[0];
  for (int w = 1; w < simt::Threads() / simt::kWarp; ++w) value = combine(value, scratch[w]);
  simt::SyncThreads();
  return value;
}
NIBBLE_DEVICE uint64_t BlockSum(uint64_t value, uint64_t* scratch) {
  return BlockReduce(value, scratch, [](uint64_t a, uint64_t b) { return a + b; });
}

struct BlockPrefix {
  uint64_t before;  // sum over the threads before this one
  uint64_t total;
};
NIBBLE_DEVICE BlockPrefix BlockScan(uint64_t value, uint64_t* scratch) {
  const int lane = simt::Lane();
  uint64_t through = value;
  for (int step = 1; step < simt::kWarp; step *= 2) {
    const uint64_t other = simt::Shuffle(through, lane >= step ? lane - step : lane);
    if (lane >= step) through += other;
  }
  if (lane == simt::kWarp - 1) scratch[simt::WarpIndex()] = through;
  simt::SyncThreads();
  BlockPrefix result{through - value, 0};
  for (int w = 0; w < simt::Threads() / simt::kWarp; ++w) {
    if (w < simt::WarpIndex()) result.before += scratch[w];
    result.total += scratch[w];
  }
  simt::SyncThreads();
  return result;
}

}  // namespace nibble
