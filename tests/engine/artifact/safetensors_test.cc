// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/artifact/safetensors_writer.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// A file with this header and so many bytes of data.
std::string File(const std::string& header, size_t data_bytes) {
  std::string file(8, '\0');
  const uint64_t length = header.size();
  std::memcpy(file.data(), &length, 8);
  return file + header + std::string(data_bytes, 'x');
}

std::string Error(const std::string& file) {
  const auto header = ParseSafetensorsHeader(file, "weights.safetensors");
  EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(header.status().message()), HasSubstr("weights.safetensors"));
  return std::string(header.status().message());
}

TEST(SafetensorsTest, AHeaderIsRead) {
  const auto header =
      ParseSafetensorsHeader(File(R"({"__metadata__":{"format":"pt"},)"
                                  R"("b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
                                  R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                                  R"("e":{"dtype":"I8","shape":[0,7],"data_offsets":[16,16]}}   )",
                                  16),
                             "file");
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 3u);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_EQ(header->tensors[0].shape.size(), 0u);
  EXPECT_EQ(header->tensors[1].name, "b");
  EXPECT_EQ(header->tensors[1].dtype, DType::kBF16);
  EXPECT_EQ(header->tensors[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(header->tensors[2].name, "e");
  EXPECT_EQ(header->metadata.at("format"), "pt");
}

TEST(SafetensorsTest, WhatIsWrongIsNamed) {
  EXPECT_THAT(Error("1234567"), HasSubstr("7 bytes"));
  EXPECT_THAT(Error(std::string(16, '\xff')), HasSubstr("header length is 18446744073709551615"));
  EXPECT_THAT(Error(File("{}", 0).substr(0, 9)), HasSubstr("must be in 0..1"));
  EXPECT_THAT(Error(File("{", 0)), HasSubstr("header: is no JSON"));
  EXPECT_THAT(Error(File("[]", 0)), HasSubstr("no JSON object"));
  EXPECT_THAT(Error(File(std::string(2000, '['), 0)), HasSubstr("nests"));
  EXPECT_THAT(Error(File(R"({"a":1})", 0)), HasSubstr("tensor a"));
  EXPECT_THAT(Error(File(R"({"__metadata__":1})", 0)), HasSubstr("__metadata__"));
  const auto tensor = [](const std::string& text) { return File(R"({"a":{)" + text + "}}", 4); };
  EXPECT_THAT(Error(tensor(R"("shape":[1],"data_offsets":[0,4])")), HasSubstr("dtype is missing"));
  EXPECT_THAT(Error(tensor(R"("dtype":"F8_E5M2","shape":[4],"data_offsets":[0,4])")),
              AllOf(HasSubstr("dtype is \"F8_E5M2\""), HasSubstr("BF16")));
  EXPECT_THAT(Error(tensor(R"("dtype":"F32","data_offsets":[0,4])")), HasSubstr("shape"));
  EXPECT_THAT(Error(tensor(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])")),
              HasSubstr("shape is -1"));
  EXPECT_THAT(Error(tensor(R"("dtype":"F32","shape":[1.5],"data_offsets":[0,4])")),
              HasSubstr("shape is 1.5"));
  EXPECT_THAT(Error(tensor(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])")),
              HasSubstr("at most 8"));
  EXPECT_THAT(
      Error(tensor(
          R"("dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4])")),
      HasSubstr("larger than 2^63"));
  EXPECT_THAT(Error(tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])")),
              HasSubstr("takes 8"));
  EXPECT_THAT(Error(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,5])")),
              HasSubstr("4 bytes of data"));
  EXPECT_THAT(Error(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])")),
              HasSubstr("ascend"));
  EXPECT_THAT(Error(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4])")),
              HasSubstr("array of two"));
  EXPECT_THAT(Error(tensor(R"("dtype":"U8","shape":[2],"data_offsets":[1,3])")),
              HasSubstr("holes"));
  EXPECT_THAT(Error(tensor(R"("dtype":"U8","shape":[2],"data_offsets":[0,2])")),
              HasSubstr("the file at 4"));
  const std::string first = R"("a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]})";
  EXPECT_THAT(
      Error(File("{" + first + R"(,"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})", 4)),
      HasSubstr("overlap"));
  EXPECT_THAT(
      Error(File("{" + first + R"(,"a":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}})", 4)),
      HasSubstr("header: \"a\" comes twice"));
}

TEST(SafetensorsTest, TheWrittenHeaderIsAlignedAndReadsBack) {
  std::vector<SafetensorsEntry> tensors = {{"second", DType::kI32, {3, 2}, 0, 0},
                                           {"first", DType::kBF16, {5}, 0, 0}};
  const auto bytes = BuildSafetensorsHeader(tensors, {{"format", "pt"}});
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(bytes->size() % 64, 0u);
  const auto header = ParseSafetensorsHeader(*bytes + std::string(34, '\0'), "file");
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->data_start, static_cast<int64_t>(bytes->size()));
  EXPECT_EQ(header->tensors[0].name, "second") << "data lies in the order given";
  EXPECT_EQ(header->tensors[1].begin, 24);
  std::vector<SafetensorsEntry> twice = {{"a", DType::kI32, {1}, 0, 0},
                                         {"a", DType::kI8, {1}, 0, 0}};
  EXPECT_FALSE(BuildSafetensorsHeader(twice, {}).ok());
}

TEST(SafetensorsTest, TheWriterHashesWhatItWrote) {
  TempDir dir;
  auto writer = SafetensorsWriter::Create(PosixFileSystem(), dir.File("a.safetensors"),
                                          {{"x", DType::kU8, {4}, 0, 0},
                                           {"empty", DType::kU8, {0}, 0, 0},
                                           {"y", DType::kU8, {2}, 0, 0}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  EXPECT_TRUE((*writer)->Append("x", "ab").ok());
  EXPECT_TRUE((*writer)->Append("x", "cd").ok());
  EXPECT_FALSE((*writer)->complete());
  EXPECT_TRUE((*writer)->Append("y", "ef").ok());
  EXPECT_TRUE((*writer)->complete());
  auto written = (*writer)->Finish();
  ASSERT_TRUE(written.ok()) << written.status();
  const std::string file = ReadFile(dir.File("a.safetensors"));
  EXPECT_EQ(written->name, "a.safetensors");
  EXPECT_EQ(written->bytes, static_cast<int64_t>(file.size()));
  EXPECT_EQ(written->sha256, Sha256Hex(file));
  EXPECT_EQ(file.substr(file.size() - 6), "abcdef");
}

// FIPS 180-4's examples.
TEST(Sha256Test, KnownDigests) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  TempDir dir;
  const std::string text(3 << 20, 'a');
  WriteFile(dir.File("a"), text);
  EXPECT_EQ(*Sha256OfFile(dir.File("a")), Sha256Hex(text));
  int asked = 0;
  EXPECT_EQ(Sha256OfFile(
                dir.File("a"),
                [&asked] { return ++asked < 3 ? absl::OkStatus() : absl::CancelledError("stop"); })
                .status()
                .code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(Sha256OfFile(dir.File("b")).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace nibble
