// SPDX-License-Identifier: Apache-2.0
#include "engine/base/read_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

TEST(ReadSmallFileTest, ReadsUpToTheLimit) {
  TempDir dir;
  WriteFile(dir.File("a"), "text");
  WriteFile(dir.File("empty"), "");
  EXPECT_EQ(*ReadSmallFile(dir.File("a"), 4), "text");
  EXPECT_EQ(*ReadSmallFile(dir.File("empty"), 0), "");
  EXPECT_EQ(ReadSmallFile(dir.File("a"), 3).status(),
            absl::InvalidArgumentError(dir.File("a") + ": has 4 bytes, at most 3 are allowed"));
}

TEST(ReadSmallFileTest, OnlyRegularFilesAreRead) {
  TempDir dir;
  ASSERT_EQ(::mkfifo(dir.File("fifo").c_str(), 0600), 0);
  EXPECT_EQ(ReadSmallFile(dir.File("fifo"), 9).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadSmallFile(dir.path(), 9).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadSmallFile(dir.File("b"), 9).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace nibble
