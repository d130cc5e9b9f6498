// SPDX-License-Identifier: Apache-2.0
#include "engine/base/json.h"

#include <gmock/gmock.h>

#include <string>

#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

std::string ErrorOf(std::string_view text,
                    RepeatedMembers repeated = RepeatedMembers::kLastCounts) {
  const auto value = ParseJsonObject(text, "a.json", repeated);
  EXPECT_EQ(value.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(value.status().message());
}

std::string Nested(int depth) {
  std::string text = R"({"a":)";
  for (int i = 1; i < depth; ++i) text += '[';
  for (int i = 1; i < depth; ++i) text += ']';
  return text + "}";
}

TEST(ParseJsonObjectTest, NamesTheDocumentAndWhatIsWrongWithIt) {
  EXPECT_EQ(ErrorOf(""), "a.json: is no JSON");
  EXPECT_EQ(ErrorOf(R"({"a": 1)"), "a.json: is no JSON");
  EXPECT_EQ(ErrorOf(R"({"a": 1} x)"), "a.json: is no JSON");
  EXPECT_EQ(ErrorOf(R"({"a": 1e999})"), "a.json: is no JSON") << "a number no double can hold";
  EXPECT_EQ(ErrorOf("{\"a\": \"\xff\"}"), "a.json: is no JSON") << "ill-formed UTF-8";
  EXPECT_EQ(ErrorOf("[1]"), "a.json: is no JSON object");
}

TEST(ParseJsonObjectTest, NestingIsBounded) {
  EXPECT_TRUE(ParseJsonObject(Nested(kMaxJsonDepth), "a.json").ok());
  EXPECT_EQ(ErrorOf(Nested(kMaxJsonDepth + 1)), "a.json: JSON nests more than 64 deep");
  EXPECT_EQ(ErrorOf(std::string(1 << 20, '[')), "a.json: JSON nests more than 64 deep");
  const std::string brackets(100, '[');
  EXPECT_TRUE(ParseJsonObject(R"({"a": "\")" + brackets + "\"}", "a.json").ok())
      << "brackets inside a string do not nest";
}

TEST(ParseJsonObjectTest, RepeatedMembersAreRefusedWhereTheyWouldBeAmbiguous) {
  const char* text = R"({"a": 1, "b": {"c": 1, "c": 2}, "a": 2})";
  EXPECT_EQ((*ParseJsonObject(text, "a.json"))["a"], 2);
  EXPECT_EQ(ErrorOf(text, RepeatedMembers::kRefused), "a.json: \"a\" comes twice");
  EXPECT_TRUE(
      ParseJsonObject(R"({"a": {"b": 1}, "b": 1})", "a.json", RepeatedMembers::kRefused).ok());
}

TEST(ReadJsonObjectTest, TheFileIsNamedAndItsSizeBounded) {
  TempDir dir;
  WriteFile(dir.File("a.json"), R"({"a": 1})");
  EXPECT_EQ((*ReadJsonObject(dir.File("a.json")))["a"], 1);
  const auto large = ReadJsonObject(dir.File("a.json"), 7);
  EXPECT_EQ(large.status().message(), dir.File("a.json") + ": has 8 bytes, at most 7 are allowed");
  EXPECT_EQ(ReadJsonObject(dir.File("b.json")).status().code(), absl::StatusCode::kNotFound);
}

TEST(MembersTest, MissingAndNullGiveTheFallbackAndAnotherTypeNamesTheField) {
  const nlohmann::json object = {{"yes", true}, {"text", "a"}, {"null", nullptr}, {"list", {1}}};
  EXPECT_EQ(FindMember(object, "null"), nullptr);
  EXPECT_EQ(FindMember(nlohmann::json("text"), "text"), nullptr);
  EXPECT_TRUE(*BoolMember(object, "yes", false));
  EXPECT_TRUE(*BoolMember(object, "null", true));
  EXPECT_EQ(*StringMember(object, "text", "b"), "a");
  EXPECT_EQ(*StringMember(object, "missing", "b"), "b");
  EXPECT_EQ(BoolMember(object, "list", false).status().message(),
            "field 'list' is [1], must be true or false");
  EXPECT_EQ(StringMember(object, "yes", "").status().message(),
            "field 'yes' is true, must be a string");
}

TEST(ShownJsonTest, IsShortAndPrintable) {
  EXPECT_EQ(ShownJson("\xc3\xa4\n\xff"), R"("\u00e4\n\ufffd")");
  EXPECT_THAT(ShownJson(std::string(1000, 'x')), SizeIs(103));
  EXPECT_THAT(ShownJson(std::string(1000, 'x')), HasSubstr("xxx..."));
}

}  // namespace
}  // namespace nibble
