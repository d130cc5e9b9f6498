// SPDX-License-Identifier: Apache-2.0
#include "engine/eval/documents.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tests/support/source_dir.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

// The demo model's tokenizer: byte fallback, BOS 1, with a chat template.
class Documents : public testing::Test {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::FromDirectory(SourceDir().string() + "/deploy/demo-model/model");
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
  }

  std::string Write(const std::string& name, const std::string& contents) {
    WriteFile(dir_.File(name), contents);
    return dir_.File(name);
  }

  std::string Error(const std::string& name, const std::string& contents) {
    auto documents = ReadDocuments(Write(name, contents), *tokenizer_);
    EXPECT_EQ(documents.status().code(), absl::StatusCode::kInvalidArgument) << name;
    return std::string(documents.status().message());
  }

  TempDir dir_;
  std::shared_ptr<const Tokenizer> tokenizer_;
};

TEST_F(Documents, PlainTextIsOneDocumentWithOneBos) {
  auto documents = ReadDocuments(Write("a.txt", "One day.\n\nThe next day."), *tokenizer_);
  ASSERT_TRUE(documents.ok()) << documents.status();
  ASSERT_EQ(documents->size(), 1u);
  EXPECT_EQ((*documents)[0], tokenizer_->Encode("One day.\n\nThe next day."));
  EXPECT_EQ((*documents)[0][0], 1);
  EXPECT_NE((*documents)[0][1], 1);
}

TEST_F(Documents, AnArrayOfStringsIsADocumentEach) {
  auto documents = ReadDocuments(Write("a.json", R"(["One", "Two\nlines"])"), *tokenizer_);
  ASSERT_TRUE(documents.ok()) << documents.status();
  ASSERT_EQ(documents->size(), 2u);
  EXPECT_EQ((*documents)[1], tokenizer_->Encode("Two\nlines"));
}

TEST_F(Documents, LinesHoldTextMessagesOrIds) {
  auto documents = ReadDocuments(Write("a.jsonl", R"({"text": "One"}
{"ids": [5, 6]}

{"ids": [1, 5, 6]}
{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]}
)"),
                                 *tokenizer_);
  ASSERT_TRUE(documents.ok()) << documents.status();
  ASSERT_EQ(documents->size(), 4u);
  EXPECT_EQ((*documents)[0], tokenizer_->Encode("One"));
  EXPECT_EQ((*documents)[1], (Document{1, 5, 6}));
  EXPECT_EQ((*documents)[2], (Document{1, 5, 6}));
  const Document& chat = (*documents)[3];
  EXPECT_EQ(std::count(chat.begin(), chat.end(), 1), 1);
  const std::string text = tokenizer_->Decode(chat, /*skip_special=*/true);
  EXPECT_NE(text.find("Hello"), std::string::npos) << text;
  EXPECT_NE(text.find("Good day"), std::string::npos) << text;
}

TEST_F(Documents, ErrorsNameFileLineAndField) {
  EXPECT_NE(Error("b.jsonl", "{\"text\": \"ok\"}\n{\"text\": 5}\n")
                .find("line 2: \"text\" is not a string"),
            std::string::npos);
  EXPECT_NE(Error("c.jsonl", "{\"txt\": \"ok\"}\n").find("\"messages\""), std::string::npos);
  EXPECT_NE(Error("d.jsonl", "{\"ids\": [4096]}\n").find("holds 4096; allowed are 0..4095"),
            std::string::npos);
  EXPECT_NE(Error("e.jsonl", "not json\n").find("line 1: is no JSON"), std::string::npos);
  const std::string deep = "{\"messages\": " + std::string(100'000, '[') + "}\n";
  EXPECT_NE(Error("i.jsonl", deep).find("line 1: JSON nests more than"), std::string::npos);
  EXPECT_NE(Error("f.json", "{}").find("array of strings"), std::string::npos);
  EXPECT_NE(Error("g.jsonl", "\n").find("holds no document"), std::string::npos);
  EXPECT_EQ(ReadDocuments("/nonexistent", *tokenizer_).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadDocuments(Write("h.txt", "too long"), *tokenizer_, 4).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(Documents, CalibrationSamplesHaveOneBosEachAndTheAskedLength) {
  const std::vector<Document> documents = {{1, 10, 11, 12}, {1, 13, 14, 15, 16, 17, 18}, {1, 19}};
  auto samples = CalibrationSamples(documents, *tokenizer_, 10, 4);
  ASSERT_TRUE(samples.ok()) << samples.status();
  EXPECT_EQ(samples->samples,
            (std::vector<Document>{{1, 10, 11, 12}, {1, 13, 14, 15}, {1, 16, 17, 18}}));
  EXPECT_TRUE(samples->rest.empty()) << "a token that is too few for a sample";
  EXPECT_EQ(CalibrationSamples(documents, *tokenizer_, 1, 64).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(Documents, WhatCalibrationSamplesLeaveOverHasNoTokenOfTheirs) {
  const std::vector<Document> documents = {{1, 10, 11, 12}, {1, 13, 14, 15, 16, 17, 18}, {1, 19}};
  const Calibration cut = *CalibrationSamples(documents, *tokenizer_, 2, 4);
  EXPECT_EQ(cut.samples, (std::vector<Document>{{1, 10, 11, 12}, {1, 13, 14, 15}}));
  EXPECT_EQ(cut.rest, (std::vector<Document>{{1, 16, 17, 18}, {1, 19}}));
  EXPECT_EQ(CalibrationSamples(documents, *tokenizer_, 1, 4)->rest,
            (std::vector<Document>{documents[1], documents[2]}));
}

}  // namespace
}  // namespace nibble
