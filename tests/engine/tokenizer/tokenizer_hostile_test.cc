// SPDX-License-Identifier: Apache-2.0
//
// Damaged and hostile tokenizer files and templates: an error or a working object, never a crash.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/engine/tokenizer/test_files.h"

namespace nibble {
namespace {

using nlohmann::json;
using testing::DataPath;
using ::testing::HasSubstr;

constexpr char kProbe[] =
    "The harbour's 12 b\u00e4r\u2581s <|begin|> \xFF\xE2\x82 \U0001F680\n\n  x";

// One more damaged copy of `bytes`: cut off, bits flipped, a piece doubled or taken out, numbers
// overwritten with extremes.
std::string Damage(std::string bytes, std::mt19937* rng) {
  const auto below = [rng](size_t n) {
    return static_cast<size_t>((*rng)() % std::max<size_t>(n, 1));
  };
  const int changes = 1 + static_cast<int>(below(3));
  for (int i = 0; i < changes && !bytes.empty(); ++i) {
    const size_t at = below(bytes.size());
    switch (below(6)) {
      case 0:
        bytes.resize(at);
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 2:
        bytes.insert(at, bytes.substr(below(bytes.size()), below(200)));
        break;
      case 3:
        bytes.erase(at, below(200));
        break;
      case 4:
        bytes.replace(at, below(6), std::string(below(6), '\xFF'));
        break;
      default:
        bytes.replace(at, below(4), "99999999999999999999");
        break;
    }
  }
  return bytes;
}

// What can be loaded must also work. Returns whether it could.
bool Exercise(const absl::StatusOr<std::shared_ptr<const Tokenizer>>& tokenizer) {
  if (!tokenizer.ok()) {
    EXPECT_FALSE(tokenizer.status().message().empty());
    return false;
  }
  for (const bool parse_special : {true, false}) {
    EncodeOptions options;
    options.parse_special = parse_special;
    const std::vector<int32_t> ids = (*tokenizer)->Encode(kProbe, options);
    for (const int32_t id : ids) {
      EXPECT_GE(id, 0);
      EXPECT_LT(id, (*tokenizer)->vocab_size());
    }
    (*tokenizer)->Decode(ids, true);
  }
  return true;
}

TEST(HostileTokenizerTest, DamagedTokenizerJson) {
  std::mt19937 rng(1);
  for (const char* name : {"llama3_style.json", "llama2_style.json", "qwen2_style.json"}) {
    const std::string good = ReadFile(DataPath(name));
    int refused = 0;
    for (int i = 0; i < 150; ++i) {
      refused += Exercise(Tokenizer::FromTokenizerJson(Damage(good, &rng))) ? 0 : 1;
    }
    EXPECT_GT(refused, 20) << name;
  }
}

// Replaces one value somewhere in the document.
void DamageValue(json* node, const json& replacement, std::mt19937* rng) {
  while (node->is_structured() && !node->empty() && (*rng)() % 4 != 0) {
    auto it = node->begin();
    std::advance(it, static_cast<ptrdiff_t>((*rng)() % node->size()));
    node = &*it;
  }
  *node = replacement;
}

TEST(HostileTokenizerTest, WellFormedJsonOfTheWrongShape) {
  std::mt19937 rng(2);
  const std::vector<json> replacements = {nullptr,
                                          -1,
                                          0,
                                          1,
                                          4194303,
                                          4194304,
                                          1e300,
                                          UINT64_MAX,
                                          INT64_MIN,
                                          true,
                                          "",
                                          "\u2581",
                                          "(((((",
                                          "(a+)+$",
                                          "[a&&b]",
                                          std::string(5000, 'x'),
                                          json::array(),
                                          json::object(),
                                          json::array({1, 2}),
                                          json{{"type", "Sequence"}},
                                          json{{"Regex", "(?<n>x)"}},
                                          json{{"id", 99999999}}};
  for (const char* name : {"llama3_style.json", "mistral_style.json", "digits_style.json"}) {
    json good = json::parse(ReadFile(DataPath(name)));
    for (int i = 0; i < 150; ++i) {
      json bad = good;
      // The vocabulary's many leaves would draw most of the changes.
      json* root = i % 3 == 0 ? &bad : nullptr;
      static constexpr const char* kParts[] = {"normalizer",     "pre_tokenizer", "decoder",
                                               "post_processor", "added_tokens",  "model"};
      if (root == nullptr) root = &bad[kParts[rng() % 6]];
      DamageValue(root, replacements[rng() % replacements.size()], &rng);
      Exercise(Tokenizer::FromTokenizerJson(bad.dump()));
    }
  }
}

TEST(HostileTokenizerTest, DeepAndHugeJson) {
  EXPECT_FALSE(Exercise(Tokenizer::FromTokenizerJson(std::string(1 << 20, '['))));
  EXPECT_FALSE(Exercise(Tokenizer::FromTokenizerJson("")));
  std::string deep = "{\"type\":\"Sequence\",\"normalizers\":[";
  std::string nested;
  for (int i = 0; i < 30; ++i) nested += deep;
  EXPECT_FALSE(Exercise(Tokenizer::FromTokenizerJson("{\"normalizer\":" + nested)));
}

TEST(HostileTokenizerTest, DamagedTokenizerModel) {
  std::mt19937 rng(3);
  for (const char* name : {"spm_llama_style.model", "spm_plain_style.model"}) {
    const std::string good = ReadFile(DataPath(name));
    int refused = 0;
    for (int i = 0; i < 400; ++i) {
      refused += Exercise(Tokenizer::FromSentencePiece(Damage(good, &rng))) ? 0 : 1;
    }
    EXPECT_GT(refused, 50) << name;
    for (size_t size = 0; size < 200; ++size) {
      Exercise(Tokenizer::FromSentencePiece(good.substr(0, size)));
    }
  }
  // A length far beyond the end.
  EXPECT_FALSE(Exercise(Tokenizer::FromSentencePiece("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F")));
}

TEST(HostileTokenizerTest, GgufVocabulariesThatContradictThemselves) {
  GgufVocab good;
  good.model = "llama";
  good.tokens = {"<unk>", "<s>", "</s>", "a", "b", "ab"};
  good.scores = {0, 0, 0, -1, -2, -3};
  good.token_type = {2, 3, 3, 1, 1, 1};
  ASSERT_TRUE(Exercise(Tokenizer::FromGguf(good)));
  const auto error = [&good](void (*damage)(GgufVocab&)) {
    GgufVocab bad = good;
    damage(bad);
    const auto tokenizer = Tokenizer::FromGguf(bad);
    EXPECT_FALSE(tokenizer.ok());
    return std::string(tokenizer.status().message());
  };
  EXPECT_EQ(error([](GgufVocab& v) { v.scores.pop_back(); }),
            "tokenizer.ggml.scores has 5 entries, tokens has 6");
  EXPECT_EQ(error([](GgufVocab& v) { v.token_type.pop_back(); }),
            "tokenizer.ggml.token_type has 5 entries, tokens has 6");
  EXPECT_EQ(error([](GgufVocab& v) { v.token_type[0] = 77; }),
            "tokenizer.ggml.token_type of token 0 is 77, must be in 1..6");
  EXPECT_EQ(error([](GgufVocab& v) { v.bos_token_id = 6; }),
            "tokenizer.ggml.bos_token_id is 6, must be in 0..5");
  EXPECT_EQ(error([](GgufVocab& v) { v.scores[3] = NAN; }),
            "tokenizer.ggml.scores entry 3 is not a finite number");
  EXPECT_THAT(error([](GgufVocab& v) { v.tokens[4] = std::string("\xFF"); }),
              HasSubstr("tokenizer.ggml.tokens entry 4"));
  EXPECT_EQ(error([](GgufVocab& v) { v.tokens[4] = std::string("a"); }),
            "tokenizer.ggml.tokens: piece 4 ('a') is there twice");
  EXPECT_THAT(error([](GgufVocab& v) { v.tokens.clear(); }),
              HasSubstr("tokenizer.ggml.tokens has 0 entries"));
  EXPECT_EQ(error([](GgufVocab& v) { v.model = "t5"; }),
            "tokenizer.ggml.model is \"t5\", known are llama, gpt2");
  EXPECT_THAT(error([](GgufVocab& v) {
                v.model = "gpt2";
                v.pre = "nobody knows";
              }),
              HasSubstr("tokenizer.ggml.pre is \"nobody knows\", known are gpt-2"));

  GgufVocab merges = good;
  merges.model = "gpt2";
  merges.pre = "gpt-2";
  merges.merges = {"a b", "a c"};
  EXPECT_THAT(std::string(Tokenizer::FromGguf(merges).status().message()),
              HasSubstr("tokenizer.ggml.merges"));
  merges.merges = {"a b"};
  EXPECT_TRUE(Exercise(Tokenizer::FromGguf(merges)));
}

TEST(HostileTokenizerTest, ExpressionsThatExplodeStopAtTheirBudget) {
  json document = json::parse(ReadFile(DataPath("llama3_style.json")));
  for (const char* expression : {"(a+)+$", "(a|aa)+$", "(?:a*)*b", "(?=(a+))a*b"}) {
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"Regex", expression}};
    auto tokenizer = Tokenizer::FromTokenizerJson(document.dump());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const std::string text = std::string(40, 'a') + "c";
    EncodeOptions options;
    options.add_bos = false;
    EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode(text, options), false), text);
  }
}

TEST(HostileTokenizerTest, DamagedTemplates) {
  std::mt19937 rng(4);
  const json golden = json::parse(ReadFile(DataPath("templates.golden.json")));
  ChatInput input;
  input.messages = golden.at("cases").at(0).at("variables").at("messages");
  for (const auto& entry : std::filesystem::directory_iterator(DataPath("templates"))) {
    const std::string good = ReadFile(entry.path());
    int rendered = 0;
    for (int i = 0; i < 300; ++i) {
      absl::StatusOr<ChatTemplate> parsed = ChatTemplate::Parse(Damage(good, &rng));
      if (parsed.ok()) rendered += parsed->Render(input).ok() ? 1 : 0;
    }
    EXPECT_LT(rendered, 300) << entry.path();
  }
}

}  // namespace
}  // namespace nibble
