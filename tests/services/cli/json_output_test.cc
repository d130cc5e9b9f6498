// SPDX-License-Identifier: Apache-2.0
#include "services/cli/json_output.h"

#include <gtest/gtest.h>

#include "nibble/v1/quantization.pb.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

TEST(JsonOutputTest, FieldsAreNamedAsInTheProtosAndTypesAreWhatAScriptExpects) {
  v1::Job job;
  job.set_name("jobs/a");
  job.set_state(v1::Job::RUNNING);
  job.mutable_progress()->set_blocks_done(3);
  job.mutable_progress()->set_fraction(0.25);
  job.set_sequence(int64_t{1} << 40);
  job.mutable_create_time()->set_seconds(86400);
  const Json json = ToJson(job);
  EXPECT_EQ(json.at("name"), "jobs/a");
  EXPECT_EQ(json.at("state"), "RUNNING") << "by name";
  EXPECT_EQ(json.at("progress").at("blocks_done"), 3);
  EXPECT_EQ(json.at("progress").at("fraction"), 0.25);
  EXPECT_TRUE(json.at("sequence").is_number_integer()) << "no string, as proto3 JSON has it";
  EXPECT_EQ(json.at("sequence"), int64_t{1} << 40);
  EXPECT_EQ(json.at("create_time"), "1970-01-02T00:00:00Z");
}

TEST(JsonOutputTest, WhatIsUnsetIsLeftOutOnlyIfItHasPresence) {
  const Json job = ToJson(v1::Job());
  EXPECT_FALSE(job.contains("spec"));
  EXPECT_FALSE(job.contains("create_time"));
  EXPECT_EQ(job.at("artifact"), "");
  EXPECT_EQ(job.at("cancel_requested"), false);
  const Json progress = ToJson(v1::Progress());
  EXPECT_FALSE(progress.contains("eta_seconds"));
  EXPECT_EQ(progress.at("fraction"), 0.0);
}

TEST(JsonOutputTest, RepeatedFieldsAreListsAlsoWhenEmpty) {
  v1::Upload upload;
  EXPECT_EQ(ToJson(upload).at("files"), Json::array());
  upload.add_files()->set_name("a");
  upload.add_files()->set_name("b");
  ASSERT_EQ(ToJson(upload).at("files").size(), 2u);
  EXPECT_EQ(ToJson(upload).at("files")[1].at("name"), "b");
}

TEST(JsonOutputTest, CompactIsOneLineAndBrokenUtf8IsReplaced) {
  ::testing::internal::CaptureStdout();
  PrintJson(Json{{"text", "a\xff"}, {"n", 1}}, /*compact=*/true);
  const std::string line = ::testing::internal::GetCapturedStdout();
  EXPECT_EQ(line, "{\"text\":\"a\xEF\xBF\xBD\",\"n\":1}\n");
  ::testing::internal::CaptureStdout();
  PrintJson(Json{{"n", 1}});
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "{\n  \"n\": 1\n}\n");
}

}  // namespace
}  // namespace nibble
