// SPDX-License-Identifier: Apache-2.0
//
// What the packages `tokenizers` and `sentencepiece` answer (make_golden.py), we answer.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/tokenizer/tokenizer.h"
#include "tests/engine/tokenizer/test_files.h"

namespace nibble {
namespace {

using testing::DataPath;
using Ids = std::vector<int32_t>;

nlohmann::json Cases(const std::string& name) {
  return nlohmann::json::parse(ReadFile(DataPath(name + ".golden.json"))).at("cases");
}

std::string NameOfStyle(const ::testing::TestParamInfo<const char*>& style) { return style.param; }

class TokenizerJsonGoldenTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string json = ReadFile(DataPath(std::string(GetParam()) + ".json"));
    auto tokenizer = Tokenizer::FromTokenizerJson(json);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *tokenizer;
  }
  std::shared_ptr<const Tokenizer> tokenizer_;
};

TEST_P(TokenizerJsonGoldenTest, EncodesUserTextAsThePackageDoes) {
  for (const auto& c : Cases(GetParam())) {
    EncodeOptions options;
    options.add_bos = false;
    EXPECT_EQ(tokenizer_->Encode(c.at("text").get<std::string>(), options),
              c.at("plain").get<Ids>())
        << c.at("text");
  }
}

TEST_P(TokenizerJsonGoldenTest, EncodesTemplateTextAsThePackageDoes) {
  for (const auto& c : Cases(GetParam())) {
    EncodeOptions options;
    options.parse_special = true;
    EXPECT_EQ(tokenizer_->Encode(c.at("text").get<std::string>(), options),
              c.at("special").get<Ids>())
        << c.at("text");
  }
}

TEST_P(TokenizerJsonGoldenTest, DecodesAsThePackageDoes) {
  for (const auto& c : Cases(GetParam())) {
    const Ids ids = c.at("special").get<Ids>();
    EXPECT_EQ(tokenizer_->Decode(ids, true), c.at("decoded").get<std::string>()) << c.at("text");
    EXPECT_EQ(tokenizer_->Decode(ids, false), c.at("decoded_all").get<std::string>())
        << c.at("text");
  }
}

TEST_P(TokenizerJsonGoldenTest, IncrementalPiecesAddUpToTheWholeAndAreAllWellFormed) {
  for (const auto& c : Cases(GetParam())) {
    const Ids ids = c.at("special").get<Ids>();
    for (const bool skip_special : {true, false}) {
      IncrementalDecoder::Options options;
      options.skip_special = skip_special;
      options.at_start = true;
      IncrementalDecoder decoder(tokenizer_, options);
      std::string text;
      for (const int32_t id : ids) text += decoder.Push(id);
      text += decoder.Flush();
      EXPECT_EQ(text, tokenizer_->Decode(ids, skip_special)) << c.at("text");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Styles, TokenizerJsonGoldenTest,
                         ::testing::Values("gpt2_style", "llama3_style", "qwen2_style",
                                           "digits_style", "llama2_style", "unknown_style",
                                           "mistral_style"),
                         NameOfStyle);

class SentencePieceGoldenTest : public ::testing::TestWithParam<const char*> {};

TEST_P(SentencePieceGoldenTest, EncodesAsThePackageDoes) {
  const std::string model = ReadFile(DataPath(std::string(GetParam()) + ".model"));
  auto tokenizer = Tokenizer::FromSentencePiece(model);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const auto& c : Cases(GetParam())) {
    EncodeOptions options;
    options.add_bos = false;
    EXPECT_EQ((*tokenizer)->Encode(c.at("text").get<std::string>(), options),
              c.at("plain").get<Ids>())
        << c.at("text");
  }
}

INSTANTIATE_TEST_SUITE_P(Styles, SentencePieceGoldenTest,
                         ::testing::Values("spm_llama_style", "spm_plain_style",
                                           "spm_default_style"),
                         NameOfStyle);

}  // namespace
}  // namespace nibble
