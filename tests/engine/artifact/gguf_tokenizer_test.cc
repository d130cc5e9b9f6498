// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/gguf_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/artifact/artifact_writer.h"
#include "engine/artifact/checkpoint.h"
#include "engine/artifact/gguf_model.h"
#include "engine/tokenizer/tokenizer.h"
#include "kernels/codec.h"
#include "tests/support/shared_data.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr const char* kTexts[] = {"", "Once upon a time, there was a cat.", " two  spaces\n\ttab",
                                  "<s>special</s>", "caf\xc3\xa9 \xf0\x9f\x90\x88 1234567"};

void ExpectSameTokenizer(const GgufVocab& vocab) {
  auto direct = Tokenizer::FromGguf(vocab);
  ASSERT_TRUE(direct.ok()) << direct.status();
  auto files = TokenizerFiles(vocab);
  ASSERT_TRUE(files.ok()) << files.status();
  TempDir dir;
  for (const auto& [name, text] : *files) WriteFile(dir.File(name), text);
  auto written = Tokenizer::FromDirectory(dir.path());
  ASSERT_TRUE(written.ok()) << written.status();
  for (const char* text : kTexts) {
    for (const bool parse_special : {false, true}) {
      EncodeOptions options;
      options.parse_special = parse_special;
      const std::vector<int32_t> ids = (*direct)->Encode(text, options);
      EXPECT_EQ((*written)->Encode(text, options), ids) << text;
      EXPECT_EQ((*written)->Decode(ids, false), (*direct)->Decode(ids, false)) << text;
    }
  }
  EXPECT_EQ((*written)->vocab_size(), (*direct)->vocab_size());
  EXPECT_EQ((*written)->bos_id(), (*direct)->bos_id());
  EXPECT_EQ((*written)->add_bos(), (*direct)->add_bos());
  EXPECT_EQ((*written)->eos_ids(), (*direct)->eos_ids());
  EXPECT_EQ((*written)->bos_token(), (*direct)->bos_token());
}

// Tokens with scores and all bytes, as sentencepiece trains them.
GgufVocab Scores() {
  GgufVocab vocab;
  vocab.model = "llama";
  const auto add = [&vocab](const std::string& text, float score, int32_t type) {
    vocab.tokens.push_back(text);
    vocab.scores.push_back(score);
    vocab.token_type.push_back(type);
  };
  add("<unk>", 0, 2);
  add("<s>", 0, 3);
  add("</s>", 0, 3);
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    add(name, 0, 6);
  }
  float score = -1;
  for (const char* text : {"\xe2\x96\x81", "\xe2\x96\x81t", "he", "\xe2\x96\x81the", "ca", "cat",
                           "a", "c", "e", "h", "n", "o", "p", "t", "u", "w"}) {
    add(text, score--, 1);
  }
  vocab.bos_token_id = 1;
  vocab.eos_token_id = 2;
  vocab.unknown_token_id = 0;
  vocab.chat_template = "{{ messages[0].content }}";
  return vocab;
}

// The byte alphabet, a few merges and two control tokens.
GgufVocab Merges(const std::string& pre) {
  GgufVocab vocab;
  vocab.model = "gpt2";
  vocab.pre = pre;
  int other = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int code = printable ? byte : 256 + other++;
    std::string text;
    if (code < 0x80) {
      text += static_cast<char>(code);
    } else {
      text += static_cast<char>(0xc0 | (code >> 6));
      text += static_cast<char>(0x80 | (code & 0x3f));
    }
    vocab.tokens.push_back(text);
    vocab.token_type.push_back(1);
  }
  for (const char* merge : {"t h", "th e", "c a", "ca t"}) {
    vocab.merges.push_back(merge);
    std::string text = merge;
    text.erase(text.find(' '), 1);
    vocab.tokens.push_back(text);
    vocab.token_type.push_back(1);
  }
  for (const char* control : {"<s>", "</s>"}) {
    vocab.tokens.push_back(control);
    vocab.token_type.push_back(3);
  }
  vocab.bos_token_id = 260;
  vocab.eos_token_id = 261;
  return vocab;
}

TEST(GgufTokenizerTest, AVocabularyWithScoresBecomesASentencePieceModel) {
  ExpectSameTokenizer(Scores());
  GgufVocab without = Scores();
  without.add_bos_token = false;
  without.add_space_prefix = false;
  ExpectSameTokenizer(without);
}

TEST(GgufTokenizerTest, AVocabularyWithMergesBecomesATokenizerJson) {
  for (const char* pre :
       {"gpt-2", "llama-bpe", "llama3", "llama-v3", "qwen2", "smaug-bpe", "deepseek-r1-qwen"}) {
    SCOPED_TRACE(pre);
    ExpectSameTokenizer(Merges(pre));
  }
  GgufVocab with_bos = Merges("qwen2");
  with_bos.add_bos_token = true;
  ExpectSameTokenizer(with_bos);
}

TEST(GgufTokenizerTest, Llama3BeginsWithBosUnderEachOfItsNames) {
  for (const char* pre : {"llama-bpe", "llama3", "llama-v3"}) {
    EXPECT_TRUE((*Tokenizer::FromGguf(Merges(pre)))->add_bos()) << pre;
  }
  EXPECT_FALSE((*Tokenizer::FromGguf(Merges("qwen2")))->add_bos());
}

TEST(GgufTokenizerTest, UnknownKindsAreNamed) {
  GgufVocab vocab = Scores();
  vocab.model = "rwkv";
  EXPECT_THAT(TokenizerFiles(vocab).status().message(), HasSubstr("llama, gpt2"));
  EXPECT_THAT(TokenizerFiles(Merges("chatglm")).status().message(), HasSubstr("chatglm"));
  vocab = Scores();
  vocab.scores.pop_back();
  EXPECT_THAT(TokenizerFiles(vocab).status().message(), HasSubstr("scores"));
}

TEST(GgufTokenizerTest, AnArtifactOfAGgufFileIsComplete) {
  const std::string shared = SharedDataDirectory();
  if (shared.empty()) GTEST_SKIP() << "needs ../shared";
  const std::string path = shared + "/models/stories260K/stories260Ktok512.gguf";
  auto source = Checkpoint::Open(path);
  ASSERT_TRUE(source.ok()) << source.status();
  ArtifactSpec spec;
  spec.source = path;
  spec.recipe = nlohmann::json::object();
  for (const ModuleInfo& module : (*source)->modules()) {
    spec.modules.push_back({module.name, FindScheme("f32"), module.rows, module.cols});
    spec.tensors.push_back(WeightEntries(spec.modules.back())[0]);
  }
  TempDir dir;
  auto writer = ArtifactWriter::Create(PosixFileSystem(), dir.path(), spec);
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const ModuleWeight& module : spec.modules) {
    const WeightView view = *(*source)->Weight(module.name);
    absl::Status status = (*writer)->Append(
        module.name + ".weight",
        {static_cast<const char*>(view.codes), static_cast<size_t>(module.rows * module.cols * 4)});
    ASSERT_TRUE(status.ok()) << status;
  }
  auto summary = (*writer)->Finish();
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(*VerifyArtifact(dir.path()), summary->digest);
  auto direct = Tokenizer::FromGguf(*ReadGgufVocab(path));
  auto written = Tokenizer::FromDirectory(dir.path());
  ASSERT_TRUE(written.ok()) << written.status();
  const std::string text = "Once upon a time, there was a little girl named Lily.";
  EXPECT_EQ((*written)->Encode(text), (*direct)->Encode(text));
}

}  // namespace
}  // namespace nibble
