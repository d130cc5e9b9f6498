// SPDX-License-Identifier: Apache-2.0
#include "engine/base/peak_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>

namespace nibble {
namespace {

TEST(PeakMemoryTest, IsWhatWasResidentAtOnceSinceItWasReset) {
  constexpr size_t kBytes = size_t{256} << 20;
  const auto touch = [] {
    void* memory =
        mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    std::memset(memory, 1, kBytes);
    munmap(memory, kBytes);
  };
  ResetPeakMemory();
  const int64_t before = PeakMemoryBytes();
  ASSERT_GT(before, 0);
  touch();
  const int64_t after = PeakMemoryBytes();
  EXPECT_GE(after, before + static_cast<int64_t>(kBytes) / 2);
  EXPECT_GE(PeakMemoryBytes(), after) << "it stays when the memory is given back";
  ResetPeakMemory();
  EXPECT_LT(PeakMemoryBytes(), after - static_cast<int64_t>(kBytes) / 2);
}

}  // namespace
}  // namespace nibble
