// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/file_system.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>

#include "engine/artifact/mapped_file.h"
#include "engine/base/posix_status.h"
#include "engine/base/status.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PosixFileSystemTest : public ::testing::Test {
 protected:
  TempDir dir_;
  FileSystem& fs_ = PosixFileSystem();
};

TEST(PosixStatusTest, OnlyAShortageOfDiskIsAFullDisk) {
  for (const int error : {ENOSPC, EDQUOT}) {
    const absl::Status status = ErrnoStatus(error, "write", "/a");
    EXPECT_TRUE(absl::IsResourceExhausted(status));
    EXPECT_TRUE(IsDiskFull(status)) << status;
    EXPECT_TRUE(IsDiskFull(Within("while writing", status))) << "passed on";
  }
  for (const int error : {ENOMEM, EMFILE, ENFILE}) {
    const absl::Status status = ErrnoStatus(error, "open", "/a");
    EXPECT_TRUE(absl::IsResourceExhausted(status));
    EXPECT_FALSE(IsDiskFull(status)) << status;
  }
  EXPECT_FALSE(IsDiskFull(ErrnoStatus(EIO, "write", "/a")));
  EXPECT_FALSE(IsDiskFull(absl::OkStatus()));
}

TEST_F(PosixFileSystemTest, AFileIsCreatedOnceAndContinued) {
  auto file = fs_.Create(dir_.File("a"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->Append("hello").ok());
  EXPECT_TRUE((*file)->Append(" world").ok());
  EXPECT_TRUE((*file)->Sync().ok());
  EXPECT_TRUE((*file)->Close().ok());
  EXPECT_EQ(fs_.Create(dir_.File("a")).status().code(), absl::StatusCode::kAlreadyExists);
  auto again = fs_.Continue(dir_.File("a"), 5);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE((*again)->Append("!").ok());
  EXPECT_EQ(ReadFile(dir_.File("a")), "hello!");
  EXPECT_EQ(*fs_.Size(dir_.File("a")), 6);
  EXPECT_EQ(fs_.Continue(dir_.File("a"), 7).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(fs_.Continue(dir_.File("b"), 0).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(PosixFileSystemTest, ARenameNeverReplaces) {
  ASSERT_TRUE(fs_.CreateDirectory(dir_.File("a")).ok());
  ASSERT_TRUE(fs_.CreateDirectory(dir_.File("b")).ok());
  EXPECT_EQ(fs_.CreateDirectory(dir_.File("a")).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(fs_.RenameNoReplace(dir_.File("a"), dir_.File("b")).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(fs_.RenameNoReplace(dir_.File("a"), dir_.File("c")).ok());
  EXPECT_TRUE(fs_.SyncDirectory(dir_.path()).ok());
  EXPECT_THAT(*fs_.List(dir_.path()), ElementsAre("b", "c"));
}

TEST_F(PosixFileSystemTest, ATreeIsRemovedWithoutFollowingLinks) {
  std::filesystem::create_directories(dir_.File("tree/deep/er"));
  WriteFile(dir_.File("tree/deep/er/file"), "x");
  std::filesystem::create_directory(dir_.File("precious"));
  WriteFile(dir_.File("precious/file"), "x");
  std::filesystem::create_directory_symlink(dir_.File("precious"), dir_.File("tree/deep/link"));
  std::filesystem::create_directory_symlink(dir_.File("precious"), dir_.File("link"));
  EXPECT_TRUE(fs_.RemoveTree(dir_.File("tree")).ok());
  EXPECT_TRUE(fs_.RemoveTree(dir_.File("link")).ok());
  EXPECT_TRUE(fs_.RemoveTree(dir_.File("never there")).ok());
  EXPECT_THAT(*fs_.List(dir_.path()), ElementsAre("precious"));
  EXPECT_EQ(ReadFile(dir_.File("precious/file")), "x");
}

TEST_F(PosixFileSystemTest, RemoveTakesOneFileOrAnEmptyDirectory) {
  std::filesystem::create_directories(dir_.File("a/b"));
  EXPECT_FALSE(fs_.Remove(dir_.File("a")).ok());
  EXPECT_TRUE(fs_.Remove(dir_.File("a/b")).ok());
  EXPECT_TRUE(fs_.Remove(dir_.File("a")).ok());
  EXPECT_EQ(fs_.Remove(dir_.File("a")).code(), absl::StatusCode::kNotFound);
  EXPECT_GT(*fs_.FreeBytes(dir_.path()), 0);
}

TEST_F(PosixFileSystemTest, StatusesNameThePathAndTheReason) {
  const absl::Status status = fs_.Size(dir_.File("missing")).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr(dir_.File("missing")));
  EXPECT_THAT(std::string(status.message()), HasSubstr("No such file"));
}

TEST_F(PosixFileSystemTest, OnlyRegularFilesWithContentsAreMapped) {
  WriteFile(dir_.File("a"), "text");
  auto mapped = MappedFile::Open(dir_.File("a"));
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  EXPECT_EQ((*mapped)->bytes(), "text");
  WriteFile(dir_.File("empty"), "");
  EXPECT_EQ(MappedFile::Open(dir_.File("empty")).status().code(),
            absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(::mkfifo(dir_.File("fifo").c_str(), 0600), 0);
  EXPECT_EQ(MappedFile::Open(dir_.File("fifo")).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MappedFile::Open(dir_.path()).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MappedFile::Open(dir_.File("b")).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace nibble
