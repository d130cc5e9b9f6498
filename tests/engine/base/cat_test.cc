// SPDX-License-Identifier: Apache-2.0
#include "engine/base/cat.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "absl/strings/string_view.h"

namespace nibble {
namespace {

TEST(CatTest, JoinsEveryKindOfText) {
  const std::string owned = "b";
  EXPECT_EQ(Cat("a", owned, std::string_view("c"), absl::string_view("d")), "abcd");
  EXPECT_EQ(Cat(), "");
  EXPECT_EQ(Cat(std::string_view("nul\0inside", 10)), std::string("nul\0inside", 10));
}

TEST(CatTest, PrintsIntegersInDecimalAtTheEndsOfTheirRange) {
  EXPECT_EQ(Cat(std::numeric_limits<int64_t>::min()), "-9223372036854775808");
  EXPECT_EQ(Cat(std::numeric_limits<uint64_t>::max()), "18446744073709551615");
  EXPECT_EQ(Cat(uint8_t{65}, " ", int8_t{-1}), "65 -1");
}

TEST(CatTest, PrintsFloatingPointWithSixSignificantDigits) {
  EXPECT_EQ(Cat(0.25, " ", 1.0f / 3), "0.25 0.333333");
  EXPECT_EQ(Cat(1e20, " ", 1e-7), "1e+20 1e-07");
  EXPECT_EQ(Cat(std::numeric_limits<double>::infinity()), "inf");
}

}  // namespace
}  // namespace nibble
