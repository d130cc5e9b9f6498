// SPDX-License-Identifier: Apache-2.0
#include "services/common/work_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace nibble {
namespace {

TEST(WorkPoolTest, RefusesWhenTheQueueIsFullAndTakesAgainWhenItIsNot) {
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  std::promise<void> started;
  std::atomic<int> ran = 0;
  {
    WorkPool pool(1, 2);
    ASSERT_TRUE(pool.TryRun([&] {
      started.set_value();
      released.wait();
    }));
    started.get_future().wait();
    EXPECT_TRUE(pool.TryRun([&] { ++ran; }));
    EXPECT_TRUE(pool.TryRun([&] { ++ran; }));
    EXPECT_FALSE(pool.TryRun([&] { ran += 100; }));
    pool.Run([&] { ++ran; });  // has no limit
    release.set_value();
  }
  EXPECT_EQ(ran, 3) << "the destructor runs what waits";
}

}  // namespace
}  // namespace nibble
