// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "tests/engine/tokenizer/test_files.h"

namespace nibble {
namespace {

using nlohmann::json;
using testing::DataPath;
using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;

std::shared_ptr<const Tokenizer> Load(const std::string& name) {
  const bool is_model = name.ends_with(".model");
  const std::string bytes = ReadFile(DataPath(name));
  auto tokenizer =
      is_model ? Tokenizer::FromSentencePiece(bytes) : Tokenizer::FromTokenizerJson(bytes);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *tokenizer;
}

std::string ErrorOf(const json& document) {
  auto tokenizer = Tokenizer::FromTokenizerJson(document.dump());
  return tokenizer.ok() ? "loaded" : std::string(tokenizer.status().message());
}

TEST(TokenizerTest, IllFormedTextReadsAsReplacementCharacters) {
  const auto tokenizer = Load("gpt2_style.json");
  EXPECT_EQ(tokenizer->Encode("a\xFF"
                              "b\xE2\x82"),
            tokenizer->Encode("a\uFFFD"
                              "b\uFFFD"));
}

TEST(TokenizerTest, BosIsAddedByDefaultOnlyWhereTheModelSaysSo) {
  const auto llama = Load("llama2_style.json");
  EncodeOptions with;
  with.add_bos = true;
  EncodeOptions without;
  without.add_bos = false;
  EXPECT_TRUE(llama->add_bos());
  EXPECT_EQ(llama->bos_id(), 1);
  EXPECT_EQ(llama->Encode("x").front(), 1);
  EXPECT_NE(llama->Encode("x", without).front(), 1);

  const auto gpt2 = Load("gpt2_style.json");
  EXPECT_FALSE(gpt2->add_bos());
  EXPECT_EQ(gpt2->Encode("x"), gpt2->Encode("x", with));  // it has no BOS
}

TEST(TokenizerTest, SpecialTokensInUserTextStayText) {
  const auto tokenizer = Load("llama3_style.json");
  const int32_t begin = *tokenizer->FindToken("<|begin|>");
  EXPECT_TRUE(tokenizer->IsSpecial(begin));
  EncodeOptions options;
  options.add_bos = false;
  const Ids as_text = tokenizer->Encode("<|begin|>", options);
  EXPECT_THAT(as_text, ::testing::Not(::testing::Contains(begin)));
  EXPECT_EQ(tokenizer->Decode(as_text, true), "<|begin|>");
  options.parse_special = true;
  EXPECT_EQ(tokenizer->Encode("<|begin|>", options), Ids{begin});
}

TEST(TokenizerTest, SpecialTokensThatTouchALiteralRangeStayText) {
  const auto tokenizer = Load("llama2_style.json");
  const std::string text = "<s>a<s>b</s>";
  const auto specials = [&](std::vector<TextRange> literal) {
    std::vector<int32_t> found;
    for (const int32_t id :
         tokenizer->Encode(text, {.add_bos = false, .parse_special = true, .literal = literal})) {
      if (tokenizer->IsSpecial(id)) found.push_back(id);
    }
    return found;
  };
  const int32_t bos = *tokenizer->FindToken("<s>");
  const int32_t eos = *tokenizer->FindToken("</s>");
  EXPECT_EQ(specials({}), (std::vector<int32_t>{bos, bos, eos}));
  EXPECT_EQ(specials({{4, 7}}), (std::vector<int32_t>{bos, eos}));
  EXPECT_EQ(specials({{2, 3}, {3, 4}, {6, 9}}), std::vector<int32_t>());
  EXPECT_EQ(specials({{3, 4}, {7, 8}, {12, 12}}), (std::vector<int32_t>{bos, bos, eos}));
}

TEST(TokenizerTest, TokensAreKnownByTextAndBytes) {
  const auto tokenizer = Load("llama2_style.json");
  const int32_t newline = *tokenizer->FindToken("<0x0A>");
  EXPECT_EQ(tokenizer->TokenText(newline), "<0x0A>");
  EXPECT_EQ(tokenizer->TokenBytes(newline), "\n");
  EXPECT_FALSE(tokenizer->IsSpecial(newline));
  EXPECT_FALSE(tokenizer->FindToken("no such token").has_value());
}

TEST(TokenizerTest, IdsOutsideTheVocabularyDecodeToNothing) {
  const auto tokenizer = Load("gpt2_style.json");
  const Ids ids = {-1, 1 << 30, tokenizer->vocab_size(), INT32_MIN};
  EXPECT_EQ(tokenizer->Decode(ids, false), "");
  EXPECT_EQ(tokenizer->TokenText(-1), "");
  EXPECT_FALSE(tokenizer->IsSpecial(1 << 30));
}

TEST(TokenizerTest, OneTokenizerServesManyThreads) {
  const auto tokenizer = Load("qwen2_style.json");
  const std::string text = "The harbour wakes; caf\u00e9, \u6e2f\u3092\u51fa\u3066 12345";
  const Ids wanted = tokenizer->Encode(text);
  std::vector<std::thread> threads;
  std::vector<int> equal(4, 0);
  for (size_t t = 0; t < equal.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) equal[t] += tokenizer->Encode(text) == wanted ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(equal, ::testing::Each(200));
}

TEST(TokenizerTest, OneVeryLongWordTakesNoQuadraticTime) {
  for (const char* name : {"gpt2_style.json", "llama2_style.json", "spm_default_style.model"}) {
    const auto tokenizer = Load(name);
    const std::string word(1 << 20, 'a');
    const std::string spaces(1 << 20, ' ');
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(word), true), word) << name;
    EXPECT_FALSE(tokenizer->Encode(word + spaces + "x").empty()) << name;
  }
}

TEST(TokenizerTest, UnsupportedPartsAreNamed) {
  const json good = json::parse(ReadFile(DataPath("llama3_style.json")));
  ASSERT_EQ(ErrorOf(good), "loaded");
  json bad = good;
  bad["model"]["type"] = "WordPiece";
  EXPECT_THAT(ErrorOf(bad), HasSubstr("'WordPiece'"));
  bad = good;
  bad["model"]["end_of_word_suffix"] = "</w>";
  EXPECT_THAT(ErrorOf(bad), HasSubstr("end_of_word_suffix"));
  bad = good;
  bad["normalizer"] = {{"type", "BertNormalizer"}};
  EXPECT_THAT(ErrorOf(bad), HasSubstr("'BertNormalizer'"));
  bad = good;
  bad["pre_tokenizer"] = {{"type", "UnicodeScripts"}};
  EXPECT_THAT(ErrorOf(bad), HasSubstr("'UnicodeScripts'"));
  bad = good;
  bad["post_processor"] = {{"type", "BertProcessing"}};
  EXPECT_THAT(ErrorOf(bad), HasSubstr("'BertProcessing'"));
  bad = good;
  bad["decoder"] = {{"type", "CTC"}};
  EXPECT_THAT(ErrorOf(bad), HasSubstr("'CTC'"));
}

TEST(TokenizerTest, WrongFieldsAreNamed) {
  const json good = json::parse(ReadFile(DataPath("llama3_style.json")));
  json bad = good;
  bad["model"]["vocab"]["x"] = 1 << 22;
  EXPECT_THAT(ErrorOf(bad), HasSubstr("0..4194303"));
  bad = good;
  bad["model"]["vocab"]["brand new"] = 0;
  EXPECT_THAT(ErrorOf(bad), HasSubstr("token id 0 is both"));
  bad = good;
  bad["model"]["merges"].push_back(json::array({"e", "such token"}));
  EXPECT_THAT(ErrorOf(bad), HasSubstr("such token"));
  bad = good;
  bad["model"]["merges"][0] = "three part merge";
  EXPECT_THAT(ErrorOf(bad), HasSubstr("two tokens"));
  bad = good;
  bad["model"].erase("vocab");
  EXPECT_THAT(ErrorOf(bad), HasSubstr("model.vocab"));
  bad = good;
  bad["added_tokens"][0]["special"] = "yes";
  EXPECT_THAT(ErrorOf(bad), HasSubstr("'special' is \"yes\""));
  EXPECT_THAT(ErrorOf(json::array()), HasSubstr("no JSON object"));
}

class DirectoryTest : public ::testing::Test {
 protected:
  void Write(const std::string& name, const std::string& content) {
    WriteFile(dir_.File(name), content);
  }
  void Copy(const std::string& from, const std::string& to) { Write(to, ReadFile(DataPath(from))); }

  TempDir dir_;
};

TEST_F(DirectoryTest, ConfigurationFilesSayBosAndEos) {
  Copy("llama3_style.json", "tokenizer.json");
  Write("tokenizer_config.json",
        R"({"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}})");
  Write("generation_config.json", R"({"eos_token_id": [7, 5]})");
  Write("config.json", R"({"eos_token_id": 9})");
  auto tokenizer = Tokenizer::FromDirectory(dir_.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->bos_token(), "<|begin|>");
  EXPECT_EQ((*tokenizer)->eos_token(), "<|end|>");
  EXPECT_EQ((*tokenizer)->bos_id(), (*tokenizer)->FindToken("<|begin|>"));
  EXPECT_EQ((*tokenizer)->eos_ids(), (Ids{5, 7, *(*tokenizer)->FindToken("<|end|>")}));
}

TEST_F(DirectoryTest, AddBosTokenOverridesThePostProcessor) {
  Copy("llama3_style.json", "tokenizer.json");
  Write("tokenizer_config.json", R"({"bos_token": "<|begin|>", "add_bos_token": false})");
  auto tokenizer = Tokenizer::FromDirectory(dir_.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_FALSE((*tokenizer)->add_bos());
}

TEST_F(DirectoryTest, ATokenizerModelTakesAddedTokensFromTheConfiguration) {
  Copy("spm_llama_style.model", "tokenizer.model");
  Write("tokenizer_config.json", R"({"added_tokens_decoder": {
      "1": {"content": "<s>", "special": true},
      "620": {"content": "<|user|>", "special": true}}})");
  Write("added_tokens.json", R"({"<tool>": 621})");
  auto tokenizer = Tokenizer::FromDirectory(dir_.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 622);
  EncodeOptions options;
  options.parse_special = true;
  const Ids ids = (*tokenizer)->Encode("<|user|><tool>", options);
  EXPECT_EQ(ids, (Ids{1, 620, 621}));
  EXPECT_EQ((*tokenizer)->Decode(ids, true), "<tool>");
}

TEST_F(DirectoryTest, WithoutATokenizerTheErrorSaysWhatWasLookedFor) {
  auto tokenizer = Tokenizer::FromDirectory(dir_.path());
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("tokenizer.model"));
}

TEST_F(DirectoryTest, ABareVocabularyNeedsItsFamily) {
  Write("vocab.json", R"({"a": 0, "b": 1, "ab": 2})");
  Write("merges.txt", "#version: 0.2\na b\n");
  EXPECT_THAT(std::string(Tokenizer::FromDirectory(dir_.path()).status().message()),
              HasSubstr("tokenizer_class"));
  Write("config.json", R"({"model_type": "qwen2"})");
  auto tokenizer = Tokenizer::FromDirectory(dir_.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Encode("abba"), (Ids{2, 1, 0}));
}

TEST(IncrementalDecoderTest, NeverEmitsHalfACharacter) {
  const auto tokenizer = Load("llama2_style.json");
  const auto byte = [&](const char* text) { return *tokenizer->FindToken(text); };
  IncrementalDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.Push(byte("<0xF0>")), "");
  EXPECT_EQ(decoder.Push(byte("<0x9F>")), "");
  EXPECT_EQ(decoder.Push(byte("<0x9A>")), "");
  EXPECT_EQ(decoder.Push(byte("<0x80>")), "\U0001F680");
  EXPECT_EQ(decoder.Push(byte("<0xE2>")), "");
  EXPECT_EQ(decoder.Push(byte("<0x41>")),
            "\uFFFD"
            "A");
  EXPECT_EQ(decoder.Push(byte("<0xC3>")), "");
  EXPECT_EQ(decoder.Flush(), "\uFFFD");
  EXPECT_EQ(decoder.Flush(), "");
}

TEST(IncrementalDecoderTest, AContinuationKeepsItsFirstSpace) {
  const auto tokenizer = Load("spm_llama_style.model");
  EncodeOptions options;
  options.add_bos = false;
  const Ids ids = tokenizer->Encode("harbour", options);
  IncrementalDecoder continuation(tokenizer);
  IncrementalDecoder::Options at_start;
  at_start.at_start = true;
  IncrementalDecoder start(tokenizer, at_start);
  std::string continued;
  std::string started;
  for (const int32_t id : ids) {
    continued += continuation.Push(id);
    started += start.Push(id);
  }
  EXPECT_EQ(continued, " harbour");
  EXPECT_EQ(started, "harbour");
}

TEST(IncrementalDecoderTest, SpecialTokensAreLeftOutWhenAsked) {
  const auto tokenizer = Load("llama3_style.json");
  const int32_t end = *tokenizer->FindToken("<|end|>");
  IncrementalDecoder::Options keep;
  keep.skip_special = false;
  IncrementalDecoder keeping(tokenizer, keep);
  IncrementalDecoder skipping(tokenizer);
  EXPECT_EQ(keeping.Push(end), "<|end|>");
  EXPECT_EQ(skipping.Push(end), "");
}

}  // namespace
}  // namespace nibble
