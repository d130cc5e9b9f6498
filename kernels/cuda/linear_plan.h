// SPDX-License-Identifier: Apache-2.0
// Who computes which tiles of a weight. The tiles of (output features, input features), input
// features fastest, are cut into one run for each block, equal to within a tile, so that every
// multiprocessor streams the same number of bytes (Frantar et al. 2024, "MARLIN", arXiv 2408.11743,
// section 3.4). The blocks that share an output tile add up their parts in ascending order.
//
// The plan depends on the shape of the weight and the device only, so the order of a sum does not
// depend on the number of tokens.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/check.h"
#include "kernels/dtype.h"

namespace nibble {

struct LinearPlan {
  int k_tiles = 0;
  int blocks = 0;
  int length = 0;  // tiles of a block
  int longer = 0;  // the first so many blocks have one more

  // First tile of a block; of `blocks`, the number of tiles.
  NIBBLE_HD constexpr int Begin(int block) const {
    return block * length + (block < longer ? block : longer);
  }
  NIBBLE_HD constexpr int BlockOf(int tile) const {
    const int in_longer = longer * (length + 1);
    return tile < in_longer ? tile / (length + 1) : longer + (tile - in_longer) / length;
  }
  // The blocks that share output tile n are FirstBlock(n)..LastBlock(n). A block shares at most two
  // output tiles: one as the first of several blocks, its last; and its first as a later one.
  NIBBLE_HD constexpr int FirstBlock(int n_tile) const { return BlockOf(n_tile * k_tiles); }
  NIBBLE_HD constexpr int LastBlock(int n_tile) const {
    return BlockOf(n_tile * k_tiles + k_tiles - 1);
  }
};

// All arguments are at least 1.
inline LinearPlan PlanLinear(int n_tiles, int k_tiles, int multiprocessors) {
  const int64_t tiles = int64_t{n_tiles} * k_tiles;
  NIBBLE_CHECK(tiles <= std::numeric_limits<int>::max() / 2);  // 2^44 weights
  const int blocks = static_cast<int>(std::min<int64_t>(tiles, multiprocessors));
  return {k_tiles, blocks, static_cast<int>(tiles / blocks), static_cast<int>(tiles % blocks)};
}

}  // namespace nibble
