// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>

#include "engine/artifact/checkpoint.h"
#include "engine/artifact/gguf_model.h"
#include "kernels/codec.h"
#include "tests/engine/artifact/gguf_file.h"
#include "tests/support/shared_data.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kF32Id = 0;
constexpr uint32_t kF16Id = 1;
constexpr uint32_t kQ4_0Id = 2;
constexpr uint32_t kQ4_1Id = 3;
constexpr uint32_t kQ8_0Id = 8;
constexpr uint32_t kQ4KId = 12;

std::string Floats(const std::vector<float>& values) {
  std::string bytes;
  for (const float value : values) bytes += GgufBuilder::Bytes(value);
  return bytes;
}
std::string Half(float value) { return GgufBuilder::Bytes(F32ToF16(value)); }

// Row r of a matrix holds r + column / 100.
std::string Ramp(int rows, int cols) {
  std::vector<float> values;
  for (int row = 0; row < rows; ++row) {
    for (int col = 0; col < cols; ++col) values.push_back(static_cast<float>(row + col / 100.0));
  }
  return Floats(values);
}

GgufBuilder Header(const std::string& arch) {
  GgufBuilder builder;
  builder.String("general.architecture", arch)
      .U32(arch + ".embedding_length", 32)
      .U32(arch + ".feed_forward_length", 64)
      .U32(arch + ".block_count", 1)
      .U32(arch + ".attention.head_count", 4)
      .U32(arch + ".attention.head_count_kv", 2)
      .U32(arch + ".context_length", 77)
      .F32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f)
      .F32(arch + ".rope.freq_base", 5000.0f);
  return builder;
}

class GgufTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const GgufBuilder& builder) {
    WriteFile(dir_.File("model.gguf"), builder.File());
    return Checkpoint::Open(dir_.File("model.gguf"));
  }
  TempDir dir_;
};

TEST_F(GgufTest, TheConfigComesFromTheKeys) {
  auto checkpoint = Open(Header("llama")
                             .U32("tokenizer.ggml.bos_token_id", 1)
                             .U32("tokenizer.ggml.eos_token_id", 2)
                             .Tensor("token_embd.weight", kF32Id, {10, 32}, Ramp(10, 32)));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const nlohmann::json& config = (*checkpoint)->config();
  EXPECT_EQ(config["model_type"], "llama");
  EXPECT_EQ(config["hidden_size"], 32);
  EXPECT_EQ(config["intermediate_size"], 64);
  EXPECT_EQ(config["num_hidden_layers"], 1);
  EXPECT_EQ(config["num_attention_heads"], 4);
  EXPECT_EQ(config["num_key_value_heads"], 2);
  EXPECT_EQ(config["head_dim"], 8);
  EXPECT_EQ(config["vocab_size"], 10);
  EXPECT_EQ(config["max_position_embeddings"], 77);
  EXPECT_EQ(config["rope_theta"], 5000.0);
  EXPECT_EQ(config["tie_word_embeddings"], true) << "there is no output.weight";
  EXPECT_EQ(config["bos_token_id"], 1);
  EXPECT_EQ(config["eos_token_id"], 2);
  EXPECT_FLOAT_EQ(config["rms_norm_eps"].get<float>(), 1e-5f);
}

TEST_F(GgufTest, LlamaQueriesAndKeysAreBroughtIntoHuggingFacesOrder) {
  // A head of 8 rows is stored as (pair, half); Hugging Face has (half, pair).
  auto checkpoint = Open(Header("llama")
                             .Tensor("token_embd.weight", kF32Id, {10, 32}, Ramp(10, 32))
                             .Tensor("blk.0.attn_q.weight", kF32Id, {32, 32}, Ramp(32, 32))
                             .Tensor("blk.0.attn_k.weight", kF32Id, {16, 32}, Ramp(16, 32))
                             .Tensor("blk.0.attn_v.weight", kF32Id, {16, 32}, Ramp(16, 32))
                             .Tensor("blk.0.attn_q.bias", kF32Id, {32}, Ramp(32, 1)));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto rows = [&](const char* module) {
    const WeightView view =
        *(*checkpoint)->Weight(std::string("model.layers.0.self_attn.") + module);
    std::vector<int> first;
    for (int64_t row = 0; row < view.rows; ++row) {
      first.push_back(static_cast<int>(ReadWeight(view, row, 0)));
      EXPECT_FLOAT_EQ(ReadWeight(view, row, 31), static_cast<float>(first.back()) + 0.31f);
    }
    return std::vector<int>(first.begin() + 8, first.begin() + 16);  // the second head
  };
  EXPECT_THAT(rows("q_proj"), ElementsAre(8, 10, 12, 14, 9, 11, 13, 15));
  EXPECT_THAT(rows("k_proj"), ElementsAre(8, 10, 12, 14, 9, 11, 13, 15));
  EXPECT_THAT(rows("v_proj"), ElementsAre(8, 9, 10, 11, 12, 13, 14, 15));
  const std::vector<float> bias = *(*checkpoint)->Vector("model.layers.0.self_attn.q_proj.bias");
  EXPECT_THAT(std::vector<float>(bias.begin(), bias.begin() + 8),
              ElementsAre(0, 2, 4, 6, 1, 3, 5, 7));
}

TEST_F(GgufTest, OtherArchitecturesKeepTheirOrder) {
  auto checkpoint = Open(Header("qwen2")
                             .Tensor("token_embd.weight", kF32Id, {10, 32}, Ramp(10, 32))
                             .Tensor("blk.0.attn_q.weight", kF32Id, {32, 32}, Ramp(32, 32)));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const WeightView view = *(*checkpoint)->Weight("model.layers.0.self_attn.q_proj");
  EXPECT_EQ(ReadWeight(view, 1, 0), 1.0f);
}

TEST_F(GgufTest, BlockFormatsAreDequantized) {
  std::string q8 = Half(0.5f);
  for (int j = 0; j < 32; ++j) q8 += static_cast<char>(j - 16);
  std::string q4_0 = Half(2.0f);
  std::string q4_1 = Half(0.25f) + Half(-1.0f);
  for (int j = 0; j < 16; ++j) {
    q4_0 += static_cast<char>(j | ((15 - j) << 4));
    q4_1 += static_cast<char>(j | ((15 - j) << 4));
  }
  auto checkpoint = Open(Header("llama")
                             .Tensor("token_embd.weight", kQ8_0Id, {1, 32}, q8)
                             .Tensor("blk.0.ffn_up.weight", kQ4_0Id, {1, 32}, q4_0)
                             .Tensor("blk.0.ffn_gate.weight", kQ4_1Id, {1, 32}, q4_1));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const WeightView embedding = *(*checkpoint)->Weight("model.embed_tokens");
  const WeightView up = *(*checkpoint)->Weight("model.layers.0.mlp.up_proj");
  const WeightView gate = *(*checkpoint)->Weight("model.layers.0.mlp.gate_proj");
  for (int j = 0; j < 16; ++j) {
    EXPECT_EQ(ReadWeight(embedding, 0, j), static_cast<float>(j - 16) * 0.5f);
    EXPECT_EQ(ReadWeight(up, 0, j), static_cast<float>(j - 8) * 2.0f);
    EXPECT_EQ(ReadWeight(up, 0, j + 16), static_cast<float>(7 - j) * 2.0f);
    EXPECT_EQ(ReadWeight(gate, 0, j), static_cast<float>(j) * 0.25f - 1.0f);
    EXPECT_EQ(ReadWeight(gate, 0, j + 16), static_cast<float>(15 - j) * 0.25f - 1.0f);
  }
  for (const ModuleInfo& module : (*checkpoint)->modules()) {
    EXPECT_TRUE(module.quantized);
    EXPECT_EQ(module.bytes, module.scheme == "gguf-q8_0"   ? 34
                            : module.scheme == "gguf-q4_0" ? 18
                                                           : 20);
  }
  (*checkpoint)->Release("model.embed_tokens");
  EXPECT_EQ(ReadWeight(*(*checkpoint)->Weight("model.embed_tokens"), 0, 0), -8.0f);
}

TEST_F(GgufTest, HalfPrecisionStaysWhereItIs) {
  std::string bytes;
  for (int i = 0; i < 32; ++i) bytes += Half(static_cast<float>(i));
  auto checkpoint = Open(Header("llama").Tensor("token_embd.weight", kF16Id, {1, 32}, bytes));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const WeightView view = *(*checkpoint)->Weight("model.embed_tokens");
  EXPECT_EQ(view.scheme->name, "f16");
  EXPECT_EQ(ReadWeight(view, 0, 31), 31.0f);
}

TEST_F(GgufTest, Llama3sFrequencyDivisorsBecomeARopeScaling) {
  auto checkpoint = Open(Header("llama")
                             .Tensor("token_embd.weight", kF32Id, {10, 32}, Ramp(10, 32))
                             .Tensor("rope_freqs.weight", kF32Id, {4}, Floats({1, 1, 4, 8})));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const nlohmann::json& rope = (*checkpoint)->config()["rope_scaling"];
  EXPECT_EQ(rope["short_factor"], nlohmann::json({1.0, 1.0, 4.0, 8.0}));
  EXPECT_EQ(rope["long_factor"], rope["short_factor"]);
  EXPECT_EQ(rope["attention_factor"], 1.0);
}

TEST_F(GgufTest, TheTokenizerComesOut) {
  WriteFile(dir_.File("vocab.gguf"),
            GgufBuilder()
                .String("tokenizer.ggml.model", "llama")
                .String("tokenizer.ggml.pre", "default")
                .Strings("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "a"})
                .Numbers<float>("tokenizer.ggml.scores", 6, {0, 0, 0, -1.5f})
                .Numbers<int32_t>("tokenizer.ggml.token_type", 5, {2, 3, 3, 1})
                .U32("tokenizer.ggml.bos_token_id", 1)
                .U32("tokenizer.ggml.eos_token_id", 2)
                .U32("tokenizer.ggml.unknown_token_id", 0xffffffffu)
                .Bool("tokenizer.ggml.add_bos_token", true)
                .String("tokenizer.chat_template", "{{ x }}")
                .File());
  auto vocab = ReadGgufVocab(dir_.File("vocab.gguf"));
  ASSERT_TRUE(vocab.ok()) << vocab.status();
  EXPECT_EQ(vocab->model, "llama");
  EXPECT_THAT(vocab->tokens, ElementsAre("<unk>", "<s>", "</s>", "a"));
  EXPECT_THAT(vocab->scores, ElementsAre(0, 0, 0, -1.5f));
  EXPECT_THAT(vocab->token_type, ElementsAre(2, 3, 3, 1));
  EXPECT_EQ(vocab->bos_token_id, 1);
  EXPECT_EQ(vocab->eos_token_id, 2);
  EXPECT_EQ(vocab->unknown_token_id, std::nullopt);
  EXPECT_EQ(vocab->add_bos_token, true);
  EXPECT_EQ(vocab->chat_template, "{{ x }}");
}

TEST_F(GgufTest, ErrorsNameWhatIsWrong) {
  const auto message = [this](const GgufBuilder& builder) {
    return std::string(Open(builder).status().message());
  };
  const auto with_embedding = [](GgufBuilder builder) {
    return builder.Tensor("token_embd.weight", kF32Id, {10, 32}, Ramp(10, 32));
  };
  EXPECT_THAT(message(with_embedding(Header("gpt-j"))), HasSubstr("known are llama, qwen2, qwen3"));
  EXPECT_THAT(message(Header("llama")), HasSubstr("token_embd.weight"));
  EXPECT_THAT(
      message(with_embedding(Header("llama")).Tensor("blk.0.attn_q.weight", kQ4KId, {32, 256}, "")),
      HasSubstr("tensor \"blk.0.attn_q.weight\" is stored as Q4_K, read are F32"));
  EXPECT_THAT(
      message(with_embedding(Header("llama")).Tensor("surprise.weight", kF32Id, {1}, "1234")),
      HasSubstr("surprise.weight is not known"));
  EXPECT_THAT(message(with_embedding(Header("llama"))
                          .Tensor("token_embd.weight", kF32Id, {10, 32}, Ramp(10, 32))),
              HasSubstr("comes twice"));
  EXPECT_THAT(message(Header("llama").Tensor("token_embd.weight", kF32Id, {10, 64}, Ramp(10, 32))),
              HasSubstr("end outside"));
  EXPECT_THAT(message(Header("llama").Tensor("token_embd.weight", kQ8_0Id, {1, 33}, "")),
              HasSubstr("needs a multiple of 32"));
  EXPECT_THAT(message(with_embedding(Header("llama").U32("general.alignment", 7))),
              HasSubstr("general.alignment"));
  EXPECT_THAT(message(with_embedding(Header("llama").U32("llama.expert_count", 8))),
              HasSubstr("expert_count"));
  EXPECT_THAT(message(with_embedding(Header("llama").U32("llama.block_count", 1))),
              HasSubstr("llama.block_count\" comes twice"));
  WriteFile(dir_.File("model.gguf"), with_embedding(Header("llama")).File(4));
  EXPECT_THAT(std::string(Checkpoint::Open(dir_.File("model.gguf")).status().message()),
              HasSubstr("version is 4, must be 2 or 3"));
}

TEST_F(GgufTest, TheSharedModelIsTheSameInBothForms) {
  const std::string shared = SharedDataDirectory();
  if (shared.empty()) GTEST_SKIP() << "needs ../shared";
  const std::string directory = shared + "/models/stories260K";
  auto hf = Checkpoint::Open(directory);
  auto gguf = Checkpoint::Open(directory + "/stories260Ktok512.gguf");
  ASSERT_TRUE(hf.ok()) << hf.status();
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  EXPECT_EQ((*gguf)->config()["max_position_embeddings"], 128);
  for (const ModuleInfo& module : (*hf)->modules()) {
    const WeightView a = *(*hf)->Weight(module.name);
    const WeightView b = *(*gguf)->Weight(module.name);
    ASSERT_EQ(a.rows, b.rows);
    ASSERT_EQ(a.cols, b.cols);
    EXPECT_EQ(std::memcmp(a.codes, b.codes, static_cast<size_t>(a.rows * a.cols * 4)), 0)
        << module.name;
  }
  EXPECT_EQ(*(*hf)->Vector("model.norm.weight"), *(*gguf)->Vector("model.norm.weight"));
  auto vocab = ReadGgufVocab(directory + "/stories260Ktok512.gguf");
  ASSERT_TRUE(vocab.ok()) << vocab.status();
  EXPECT_EQ(vocab->tokens.size(), 512u);
}

}  // namespace
}  // namespace nibble
