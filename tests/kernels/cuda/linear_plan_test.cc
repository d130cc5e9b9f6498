// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/linear_plan.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <vector>

namespace nibble::testing {
namespace {

TEST(LinearPlanTest, EveryTileOnceInRunsThatDifferByOneTile) {
  for (const int multiprocessors : {1, 2, 3, 7, 132}) {
    for (const auto& [n_tiles, k_tiles] : std::vector<std::pair<int, int>>{
             {1, 1}, {1, 5}, {3, 1}, {2, 3}, {5, 7}, {32, 32}, {224, 32}, {32, 112}, {1002, 32}}) {
      const LinearPlan plan = PlanLinear(n_tiles, k_tiles, multiprocessors);
      const int tiles = n_tiles * k_tiles;
      EXPECT_EQ(plan.blocks, std::min(tiles, multiprocessors));
      EXPECT_EQ(plan.Begin(0), 0);
      EXPECT_EQ(plan.Begin(plan.blocks), tiles);
      for (int block = 0; block < plan.blocks; ++block) {
        const int count = plan.Begin(block + 1) - plan.Begin(block);
        EXPECT_GE(count, tiles / plan.blocks);
        EXPECT_LE(count, (tiles + plan.blocks - 1) / plan.blocks);
        EXPECT_EQ(plan.BlockOf(plan.Begin(block)), block);
        EXPECT_EQ(plan.BlockOf(plan.Begin(block + 1) - 1), block);
      }
    }
  }
}

TEST(LinearPlanTest, ABlockSharesAtMostItsFirstAndItsLastOutputTile) {
  for (const int multiprocessors : {2, 5, 13, 132}) {
    for (const int n_tiles : {1, 3, 8, 40}) {
      for (const int k_tiles : {1, 2, 9, 33}) {
        const LinearPlan plan = PlanLinear(n_tiles, k_tiles, multiprocessors);
        // Where a block puts its part of a shared tile: (block, whether it is the tile's first).
        std::map<std::pair<int, bool>, int> slots;
        for (int n = 0; n < n_tiles; ++n) {
          std::set<int> blocks;
          for (int k = 0; k < k_tiles; ++k) blocks.insert(plan.BlockOf(n * k_tiles + k));
          EXPECT_EQ(*blocks.begin(), plan.FirstBlock(n));
          EXPECT_EQ(*blocks.rbegin(), plan.LastBlock(n));
          EXPECT_EQ(static_cast<int>(blocks.size()), plan.LastBlock(n) - plan.FirstBlock(n) + 1);
          if (blocks.size() == 1) continue;
          for (const int block : blocks) {
            EXPECT_TRUE(slots.insert({{block, block == *blocks.begin()}, n}).second);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::testing
