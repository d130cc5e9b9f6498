// SPDX-License-Identifier: Apache-2.0
#include "engine/serve/kv_blocks.h"

#include <gmock/gmock.h>

namespace nibble {
namespace {

TEST(KvBlocks, TakesAllOrNothing) {
  KvBlocks kv(3);
  std::vector<int32_t> a, b;
  EXPECT_TRUE(kv.Take(2, &a));
  EXPECT_FALSE(kv.Take(2, &b));
  EXPECT_TRUE(b.empty());
  EXPECT_EQ(kv.free(), 1);
  EXPECT_TRUE(kv.Take(1, &b));
  EXPECT_THAT(std::vector<int32_t>({a[0], a[1], b[0]}), testing::UnorderedElementsAre(0, 1, 2));
}

TEST(KvBlocks, ASharedBlockIsFreeWhenItsLastHolderLetsGo) {
  KvBlocks kv(2);
  std::vector<int32_t> a, b;
  ASSERT_TRUE(kv.Take(2, &a));
  kv.Share(std::span(a).first(1), &b);
  EXPECT_EQ(kv.refs(a[0]), 2);
  kv.Release(&a);
  EXPECT_TRUE(a.empty());
  EXPECT_EQ(kv.free(), 1);
  kv.Release(&b);
  EXPECT_EQ(kv.free(), 2);
  EXPECT_EQ(kv.used(), 0);
}

}  // namespace
}  // namespace nibble
