// SPDX-License-Identifier: Apache-2.0
#include "services/generation/model_source.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "tests/services/generation/demo_model.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

class ModelSourceTest : public ::testing::Test {
 protected:
  ModelSourceTest() {
    fs::create_directory(root_);
    fs::copy(DemoModelPath(), root_ + "/model");
    WriteFile(directory_.File("secret"), "secret");
  }
  absl::StatusOr<ModelSource> Copied(const std::string& path) {
    return CopyFromRoot(root_, path, scratch_);
  }
  TempDir directory_;
  const std::string root_ = directory_.File("root");
  const std::string scratch_ = directory_.File("scratch");
};

TEST_F(ModelSourceTest, AModelIsCopiedAndTheCopyLivesAsLongAsTheLoad) {
  auto source = Copied("model");
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_TRUE(source->path.starts_with(scratch_));
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
    EXPECT_EQ(ReadFile(source->path + "/" + name), ReadFile(DemoModelPath() + "/" + name)) << name;
  }
  const std::string path = source->path;
  source->while_loading.reset();
  EXPECT_FALSE(fs::exists(path));
}

TEST_F(ModelSourceTest, AFileIsASourceToo) {
  WriteFile(root_ + "/tiny.gguf", "GGUF");
  auto source = Copied("tiny.gguf");
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(ReadFile(source->path), "GGUF");
}

TEST_F(ModelSourceTest, NothingLeadsOutOfTheRoot) {
  for (const std::string& path : {std::string("../secret"), directory_.File("secret"),
                                  std::string("model/../../secret"), std::string("..")}) {
    EXPECT_EQ(Copied(path).status().code(), absl::StatusCode::kInvalidArgument) << path;
  }
  fs::create_directory_symlink(directory_.path(), root_ + "/out");
  EXPECT_FALSE(Copied("out").ok());
  // A link inside a model is opened beneath the root as well.
  fs::remove(root_ + "/model/tokenizer.json");
  fs::create_symlink(directory_.File("secret"), root_ + "/model/tokenizer.json");
  EXPECT_EQ(Copied("model").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ModelSourceTest, ALinkWithinTheRootIsFollowed) {
  fs::create_symlink("model", root_ + "/alias");
  EXPECT_TRUE(Copied("alias").ok());
}

TEST_F(ModelSourceTest, WhatIsMissingIsNotFound) {
  EXPECT_EQ(Copied("nothing").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(CopyFromRoot("", "model", scratch_).status().code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(CopyFromRoot(directory_.File("nowhere"), "model", scratch_).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(ModelSourceTest, LeftOversAreSwept) {
  ASSERT_TRUE(SweepScratch(scratch_).ok()) << "nothing to sweep is no error";
  fs::create_directories(scratch_ + "/abc");
  WriteFile(scratch_ + "/abc/model.safetensors", "x");
  ASSERT_TRUE(SweepScratch(scratch_).ok());
  EXPECT_FALSE(fs::exists(scratch_));
}

}  // namespace
}  // namespace nibble
