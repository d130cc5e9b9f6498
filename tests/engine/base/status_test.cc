// SPDX-License-Identifier: Apache-2.0
#include "engine/base/status.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(WithinTest, KeepsTheCodeAndPutsThePlaceFirst) {
  const absl::Status status = Within("config.json", absl::OutOfRangeError("layers is 0"));
  EXPECT_EQ(status, absl::OutOfRangeError("config.json: layers is 0"));
}

}  // namespace
}  // namespace nibble
