// SPDX-License-Identifier: Apache-2.0
//
// Vocabularies of real models, where the shared material is there.

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <variant>
#include <vector>

#include "engine/tokenizer/tokenizer.h"
#include "tests/support/shared_data.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using Ids = std::vector<int32_t>;

std::filesystem::path Shared() { return SharedDataDirectory(); }

class TokenizerVectorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (SharedDataDirectory().empty()) GTEST_SKIP() << "needs ../shared/data";
  }

  static Ids Plain(const Tokenizer& tokenizer, const std::string& text) {
    EncodeOptions options;
    options.add_bos = false;
    return tokenizer.Encode(text, options);
  }

  // NAME.inp holds texts, NAME.out one line of ids for each.
  static void ExpectVectors(const Tokenizer& tokenizer, const std::string& name) {
    const auto base = Shared() / "tokenizer-vectors" / name;
    const std::string inputs = ReadFile(base.string() + ".inp");
    std::istringstream outputs(ReadFile(base.string() + ".out"));
    const std::string separator = "\n__ggml_vocab_test__\n";
    int count = 0;
    for (size_t begin = 0; begin < inputs.size();) {
      const size_t end = inputs.find(separator, begin);
      if (end == std::string::npos) break;
      const std::string text = inputs.substr(begin, end - begin);
      begin = end + separator.size();
      std::string line;
      ASSERT_TRUE(std::getline(outputs, line));
      std::istringstream numbers(line);
      Ids wanted;
      for (int32_t id; numbers >> id;) wanted.push_back(id);
      EXPECT_EQ(Plain(tokenizer, text), wanted) << "text '" << text << "'";
      ++count;
    }
    EXPECT_GT(count, 40);
  }
};

// Just enough of GGUF's key-value section to get at a vocabulary.
class GgufKeys {
 public:
  explicit GgufKeys(std::string bytes) : bytes_(std::move(bytes)) {
    pos_ = 8;
    Number<uint64_t>();  // tensors
    const auto keys = Number<uint64_t>();
    for (uint64_t i = 0; i < keys; ++i) {
      const std::string key = Text();
      ReadValue(key, Number<uint32_t>());
    }
  }

  GgufVocab Vocab() {
    GgufVocab vocab;
    vocab.model = text_["tokenizer.ggml.model"];
    vocab.pre = text_["tokenizer.ggml.pre"];
    vocab.tokens = texts_["tokenizer.ggml.tokens"];
    vocab.merges = texts_["tokenizer.ggml.merges"];
    for (const double x : numbers_["tokenizer.ggml.scores"]) {
      vocab.scores.push_back(static_cast<float>(x));
    }
    for (const double x : numbers_["tokenizer.ggml.token_type"]) {
      vocab.token_type.push_back(static_cast<int32_t>(x));
    }
    const auto id = [&](const std::string& key) -> std::optional<int32_t> {
      const auto& list = numbers_["tokenizer.ggml." + key];
      return list.empty() ? std::nullopt : std::optional<int32_t>(static_cast<int32_t>(list[0]));
    };
    vocab.bos_token_id = id("bos_token_id");
    vocab.eos_token_id = id("eos_token_id");
    return vocab;
  }

 private:
  template <typename T>
  T Number() {
    T value{};
    std::memcpy(&value, bytes_.data() + pos_, sizeof(T));
    pos_ += sizeof(T);
    return value;
  }
  std::string Text() {
    const auto size = Number<uint64_t>();
    pos_ += size;
    return bytes_.substr(pos_ - size, size);
  }
  double Scalar(uint32_t type) {
    switch (type) {
      case 0:
      case 7:
        return Number<uint8_t>();
      case 1:
        return Number<int8_t>();
      case 2:
        return Number<uint16_t>();
      case 3:
        return Number<int16_t>();
      case 4:
        return Number<uint32_t>();
      case 5:
        return Number<int32_t>();
      case 6:
        return static_cast<double>(Number<float>());
      case 10:
        return static_cast<double>(Number<uint64_t>());
      case 11:
        return static_cast<double>(Number<int64_t>());
      default:
        return Number<double>();
    }
  }
  void ReadValue(const std::string& key, uint32_t type) {
    if (type == 8) {
      text_[key] = Text();
    } else if (type == 9) {
      const auto element = Number<uint32_t>();
      const auto count = Number<uint64_t>();
      for (uint64_t i = 0; i < count; ++i) {
        if (element == 8) {
          texts_[key].push_back(Text());
        } else {
          numbers_[key].push_back(Scalar(element));
        }
      }
    } else {
      numbers_[key].push_back(Scalar(type));
    }
  }

  std::string bytes_;
  size_t pos_ = 0;
  std::map<std::string, std::string> text_;
  std::map<std::string, std::vector<std::string>> texts_;
  std::map<std::string, std::vector<double>> numbers_;
};

TEST_F(TokenizerVectorsTest, Gpt2FromTokenizerJson) {
  auto tokenizer = Tokenizer::FromDirectory(Shared() / "tokenizers/gpt2");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectVectors(**tokenizer, "ggml-vocab-gpt-2.gguf");
}

TEST_F(TokenizerVectorsTest, Gpt2FromGguf) {
  GgufKeys keys(ReadFile(Shared() / "tokenizer-vectors/ggml-vocab-gpt-2.gguf"));
  auto tokenizer = Tokenizer::FromGguf(keys.Vocab());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectVectors(**tokenizer, "ggml-vocab-gpt-2.gguf");
}

TEST_F(TokenizerVectorsTest, Qwen2FromVocabAndMerges) {
  const auto dir = Shared() / "tokenizers/qwen2.5";
  auto tokenizer = Tokenizer::FromVocabAndMerges(ReadFile(dir / "vocab.json"),
                                                 ReadFile(dir / "merges.txt"), WordSplit::kQwen2);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectVectors(**tokenizer, "ggml-vocab-qwen2.gguf");
}

TEST_F(TokenizerVectorsTest, Llama2FromTokenizerModel) {
  auto tokenizer = Tokenizer::FromDirectory(Shared() / "tokenizers/llama2");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectVectors(**tokenizer, "ggml-vocab-llama-spm.gguf");
  EXPECT_EQ((*tokenizer)->vocab_size(), 32000);
  EXPECT_EQ((*tokenizer)->bos_id(), 1);
  EXPECT_TRUE((*tokenizer)->add_bos());
  EXPECT_EQ((*tokenizer)->eos_ids(), Ids{2});
}

TEST_F(TokenizerVectorsTest, Llama2FromGguf) {
  GgufKeys keys(ReadFile(Shared() / "tokenizer-vectors/ggml-vocab-llama-spm.gguf"));
  auto tokenizer = Tokenizer::FromGguf(keys.Vocab());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectVectors(**tokenizer, "ggml-vocab-llama-spm.gguf");
}

TEST_F(TokenizerVectorsTest, Stories260KFromTokenizerModelAndFromGguf) {
  const std::string text = "Once upon a time, there was a little girl named Lily.";
  const Ids wanted = {403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426};
  const auto dir = Shared() / "models/stories260K";
  auto from_model = Tokenizer::FromDirectory(dir);
  ASSERT_TRUE(from_model.ok()) << from_model.status();
  EXPECT_EQ(Plain(**from_model, text), wanted);
  EXPECT_TRUE((*from_model)->add_bos());
  EXPECT_EQ((*from_model)->Encode(text).front(), 1);

  GgufKeys keys(ReadFile(dir / "stories260Ktok512.gguf"));
  auto from_gguf = Tokenizer::FromGguf(keys.Vocab());
  ASSERT_TRUE(from_gguf.ok()) << from_gguf.status();
  EXPECT_EQ(Plain(**from_gguf, text), wanted);
}

TEST_F(TokenizerVectorsTest, WarAndPeaceComesBackUnchanged) {
  const std::string text = ReadFile(Shared() / "text/war-and-peace.txt");
  for (const char* name : {"gpt2", "llama2"}) {
    auto tokenizer = Tokenizer::FromDirectory(Shared() / "tokenizers" / name);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_TRUE((*tokenizer)->Decode((*tokenizer)->Encode(text), true) == text) << name;
  }
}

}  // namespace
}  // namespace nibble
