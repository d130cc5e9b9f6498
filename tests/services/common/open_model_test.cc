// SPDX-License-Identifier: Apache-2.0
#include "services/common/open_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "tests/support/source_dir.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The demo model, whose files a test may replace.
class OpenModelTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::filesystem::path model = SourceDir() / "deploy/demo-model/model";
    for (const auto& file : std::filesystem::directory_iterator(model)) {
      std::filesystem::create_symlink(file.path(), dir_.File(file.path().filename().string()));
    }
  }
  void Replace(const std::string& name, std::string_view text) {
    std::filesystem::remove(dir_.File(name));
    WriteFile(dir_.File(name), text);
  }

  TempDir dir_;
};

TEST_F(OpenModelTest, EveryFileMayNameTokensThatEndAGeneration) {
  Replace("generation_config.json", R"({"eos_token_id": [7, 300]})");
  const absl::StatusOr<OpenedModel> opened = OpenModel(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_THAT(opened->config.eos_ids, ElementsAre(2, 7, 300)) << "2 is config.json's";
}

TEST_F(OpenModelTest, ADamagedManifestIsNoModelWithoutOne) {
  EXPECT_EQ(*KvFormatOf(dir_.path()), "bf16");
  WriteFile(dir_.File("nibble.json"), "{");
  EXPECT_THAT(std::string(KvFormatOf(dir_.path()).status().message()), HasSubstr("nibble.json"));
}

}  // namespace
}  // namespace nibble
