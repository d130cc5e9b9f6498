// SPDX-License-Identifier: Apache-2.0
#include "kernels/open_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

using ::testing::HasSubstr;

CpuOptions Tier(const char* tier) { return {.threads = 1, .tier = tier}; }

TEST(OpenDeviceTest, CpuIsTakenWithoutLookingForAGpu) {
  const auto opened = OpenDevice("cpu", Tier(""));
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_FALSE(opened->gpu);
  EXPECT_THAT(opened->line, HasSubstr("cpu ("));
  EXPECT_THAT(opened->line, Not(HasSubstr("GPU")));
}

TEST(OpenDeviceTest, NamingATierChoosesTheCpu) {
  const auto opened = OpenDevice("auto", Tier("scalar"));
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_FALSE(opened->gpu);
  EXPECT_EQ(opened->backend->Tier(), "cpu/scalar");
}

TEST(OpenDeviceTest, ATierAndAGpuContradictEachOther) {
  const auto opened = OpenDevice("cuda:0", Tier("avx2"));
  EXPECT_TRUE(absl::IsInvalidArgument(opened.status()));
  EXPECT_THAT(opened.status().message(), AllOf(HasSubstr("avx2"), HasSubstr("cuda:0")));
}

TEST(OpenDeviceTest, OtherNamesAreRefused) {
  for (const char* name : {"", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:64", "cuda:0x1", "CPU"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckDeviceName(name))) << name;
  }
  for (const char* name : {"auto", "cpu", "cuda:0", "cuda:63"}) {
    EXPECT_TRUE(CheckDeviceName(name).ok()) << name;
  }
}

}  // namespace
}  // namespace nibble
