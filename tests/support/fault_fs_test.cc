// SPDX-License-Identifier: Apache-2.0
#include "tests/support/fault_fs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class FaultFileSystemTest : public ::testing::Test {
 protected:
  // Writes `text` into a new file and leaves it open.
  std::unique_ptr<WritableFile> Write(const std::string& name, const std::string& text) {
    auto file = fs_.Create(dir_.File(name));
    EXPECT_TRUE(file.ok()) << file.status();
    EXPECT_TRUE((*file)->Append(text).ok());
    return *std::move(file);
  }
  std::vector<std::string> Names() { return *fs_.List(dir_.path()); }

  TempDir dir_;
  FaultFileSystem fs_{dir_.path()};
};

TEST_F(FaultFileSystemTest, WhatWasSyncedSurvivesACrash) {
  auto file = Write("a", "kept");
  ASSERT_TRUE(file->Sync().ok());
  ASSERT_TRUE(fs_.SyncDirectory(dir_.path()).ok());
  ASSERT_TRUE(file->Append(" and lost").ok());
  fs_.Crash();
  EXPECT_EQ(ReadFile(dir_.File("a")), "kept");
}

TEST_F(FaultFileSystemTest, AFileWithoutSyncLosesItsBytes) {
  auto file = Write("a", "lost");
  ASSERT_TRUE(fs_.SyncDirectory(dir_.path()).ok());
  fs_.Crash();
  EXPECT_THAT(Names(), ElementsAre("a"));
  EXPECT_EQ(ReadFile(dir_.File("a")), "");
}

TEST_F(FaultFileSystemTest, AFileWhoseDirectoryWasNotSyncedIsGone) {
  auto file = Write("a", "lost");
  ASSERT_TRUE(file->Sync().ok());
  fs_.Crash();
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(FaultFileSystemTest, ARenameIsUndoneUnlessItsDirectoryWasSynced) {
  ASSERT_TRUE(fs_.CreateDirectory(dir_.File("tmp")).ok());
  ASSERT_TRUE(fs_.SyncDirectory(dir_.path()).ok());
  auto file = Write("tmp/a", "text");
  ASSERT_TRUE(file->Sync().ok());
  ASSERT_TRUE(fs_.SyncDirectory(dir_.File("tmp")).ok());
  ASSERT_TRUE(fs_.RenameNoReplace(dir_.File("tmp"), dir_.File("final")).ok());
  fs_.Crash();
  EXPECT_THAT(Names(), ElementsAre("tmp"));
  EXPECT_EQ(ReadFile(dir_.File("tmp/a")), "text");

  ASSERT_TRUE(fs_.RenameNoReplace(dir_.File("tmp"), dir_.File("final")).ok());
  ASSERT_TRUE(fs_.SyncDirectory(dir_.path()).ok());
  fs_.Crash();
  EXPECT_THAT(Names(), ElementsAre("final"));
  EXPECT_EQ(ReadFile(dir_.File("final/a")), "text");
}

TEST_F(FaultFileSystemTest, WhatADirectoryLostStaysLostUnderItsNewName) {
  ASSERT_TRUE(fs_.CreateDirectory(dir_.File("tmp")).ok());
  auto unsynced = Write("tmp/a", "text");
  ASSERT_TRUE(fs_.RenameNoReplace(dir_.File("tmp"), dir_.File("final")).ok());
  ASSERT_TRUE(fs_.SyncDirectory(dir_.path()).ok());
  fs_.Crash();
  EXPECT_THAT(*fs_.List(dir_.File("final")), IsEmpty());
}

TEST_F(FaultFileSystemTest, AnOpenFileFollowsItsDirectory) {
  ASSERT_TRUE(fs_.CreateDirectory(dir_.File("tmp")).ok());
  auto file = Write("tmp/a", "text");
  ASSERT_TRUE(fs_.SyncDirectory(dir_.File("tmp")).ok());
  ASSERT_TRUE(fs_.RenameNoReplace(dir_.File("tmp"), dir_.File("final")).ok());
  ASSERT_TRUE(file->Sync().ok());
  ASSERT_TRUE(fs_.SyncDirectory(dir_.path()).ok());
  fs_.Crash();
  EXPECT_EQ(ReadFile(dir_.File("final/a")), "text");
}

TEST_F(FaultFileSystemTest, ARemovalIsUndoneUnlessItsDirectoryWasSynced) {
  WriteFile(dir_.File("a"), "one");
  WriteFile(dir_.File("b"), "two");
  ASSERT_TRUE(fs_.Remove(dir_.File("a")).ok());
  ASSERT_TRUE(fs_.SyncDirectory(dir_.path()).ok());
  ASSERT_TRUE(fs_.RemoveTree(dir_.File("b")).ok());
  EXPECT_THAT(Names(), IsEmpty());
  fs_.Crash();
  EXPECT_THAT(Names(), ElementsAre("b"));
  EXPECT_EQ(ReadFile(dir_.File("b")), "two");
}

TEST_F(FaultFileSystemTest, ContinuingCutsTheFileAndKeepsWhatIsInFront) {
  WriteFile(dir_.File("a"), "0123456789");
  auto file = fs_.Continue(dir_.File("a"), 4);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->Append("xyz").ok());
  EXPECT_EQ(ReadFile(dir_.File("a")), "0123xyz");
  fs_.Crash();
  EXPECT_EQ(ReadFile(dir_.File("a")), "0123");
}

TEST_F(FaultFileSystemTest, TheNthOperationFailsAndOthersDoNot) {
  auto file = Write("a", "text");  // operations 0 and 1
  fs_.Fail(2, absl::ResourceExhaustedError("disk full"), 1);
  EXPECT_EQ(file->Append("1234").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReadFile(dir_.File("a")), "text12") << "a failing append may leave some of its bytes";
  EXPECT_TRUE(file->Append("!").ok());
  EXPECT_EQ(fs_.operations(), 4);
  EXPECT_EQ(fs_.log()[2], "append " + dir_.File("a"));
}

TEST_F(FaultFileSystemTest, AFileThatWasOpenAtACrashCannotBeWritten) {
  auto file = Write("a", "text");
  fs_.Crash();
  EXPECT_FALSE(file->Append("more").ok());
  EXPECT_FALSE(file->Sync().ok());
  EXPECT_THAT(Names(), IsEmpty());
}

}  // namespace
}  // namespace nibble
