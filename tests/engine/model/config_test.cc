// SPDX-License-Identifier: Apache-2.0
#include "engine/model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

json Base(const char* model_type) {
  return {{"model_type", model_type}, {"hidden_size", 256},
          {"intermediate_size", 768}, {"num_hidden_layers", 4},
          {"num_attention_heads", 8}, {"num_key_value_heads", 2},
          {"vocab_size", 1000},       {"max_position_embeddings", 4096}};
}

json With(json config, const char* key, json value) {
  config[key] = std::move(value);
  return config;
}

DecoderConfig Parsed(const json& config) {
  auto parsed = ParseDecoderConfig(config);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? *parsed : DecoderConfig();
}

std::string Message(const json& config) {
  const absl::Status status = ParseDecoderConfig(config).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << config.dump();
  return std::string(status.message());
}

TEST(ConfigTest, AbsentFieldsHaveTheFamilysDefaults) {
  const DecoderConfig llama = Parsed(Base("llama"));
  EXPECT_EQ(llama.family, "llama");
  EXPECT_EQ(llama.head_dim, 32);
  EXPECT_FLOAT_EQ(llama.norm_eps, 1e-6f);
  EXPECT_FLOAT_EQ(llama.attention_scale, 1.0f / std::sqrt(32.0f));
  EXPECT_EQ(llama.activation, GateActivation::kSilu);
  EXPECT_FALSE(llama.qkv_bias || llama.o_bias || llama.mlp_bias || llama.qk_norm);
  EXPECT_FALSE(llama.tied_head);
  EXPECT_EQ(llama.bos_id, 1);
  EXPECT_THAT(llama.eos_ids, ElementsAre(2));
  EXPECT_EQ(llama.rope.theta, 10000.0);
  EXPECT_EQ(llama.rope.rotary_dim, 32);
  EXPECT_THAT(llama.window, AllOf(::testing::SizeIs(4), Each(0)));

  const DecoderConfig qwen3 = Parsed(Base("qwen3"));
  EXPECT_EQ(qwen3.head_dim, 128) << "not hidden_size / num_attention_heads";
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_EQ(qwen3.bos_id, -1);
  EXPECT_THAT(qwen3.eos_ids, IsEmpty());
  EXPECT_TRUE(Parsed(Base("qwen2")).qkv_bias) << "Qwen2 always has biases on q, k and v";
  EXPECT_FALSE(Parsed(Base("qwen2")).o_bias);

  json no_kv = Base("llama");
  no_kv.erase("num_key_value_heads");
  EXPECT_EQ(Parsed(no_kv).kv_heads, 8) << "multi-head attention";
}

TEST(ConfigTest, BiasesFollowTheirFields) {
  const DecoderConfig llama =
      Parsed(With(With(Base("llama"), "attention_bias", true), "mlp_bias", true));
  EXPECT_TRUE(llama.qkv_bias && llama.o_bias && llama.mlp_bias);
  const DecoderConfig mistral = Parsed(With(Base("mistral"), "attention_bias", true));
  EXPECT_FALSE(mistral.qkv_bias || mistral.o_bias) << "Mistral has none, whatever the field says";
  const DecoderConfig qwen3 = Parsed(With(Base("qwen3"), "attention_bias", true));
  EXPECT_TRUE(qwen3.qkv_bias && qwen3.o_bias);
}

TEST(ConfigTest, MistralsWindowCoversEveryLayerUnlessItIsNull) {
  EXPECT_THAT(Parsed(Base("mistral")).window, Each(4096));
  EXPECT_THAT(Parsed(With(Base("mistral"), "sliding_window", 100)).window, Each(100));
  EXPECT_THAT(Parsed(With(Base("mistral"), "sliding_window", nullptr)).window, Each(0));
  EXPECT_THAT(Parsed(With(Base("llama"), "sliding_window", 100)).window, Each(0));
}

TEST(ConfigTest, QwensWindowBeginsAtALayer) {
  json config = With(With(Base("qwen2"), "sliding_window", 64), "max_window_layers", 3);
  EXPECT_THAT(Parsed(config).window, Each(0)) << "use_sliding_window is off by default";
  config["use_sliding_window"] = true;
  EXPECT_THAT(Parsed(config).window, ElementsAre(0, 0, 0, 64));
  config["layer_types"] = {"sliding_attention", "full_attention", "full_attention",
                           "sliding_attention"};
  EXPECT_THAT(Parsed(config).window, ElementsAre(64, 0, 0, 64)) << "layer_types win";
  config["use_sliding_window"] = false;
  EXPECT_THAT(Parsed(config).window, Each(0));
  config["layer_types"] = {"sliding_attention"};
  EXPECT_THAT(Message(config), HasSubstr("layer_types"));
}

TEST(ConfigTest, EosIsOneIdOrMany) {
  EXPECT_THAT(Parsed(With(Base("llama"), "eos_token_id", 7)).eos_ids, ElementsAre(7));
  EXPECT_THAT(Parsed(With(Base("llama"), "eos_token_id", {7, 8, 9})).eos_ids, ElementsAre(7, 8, 9));
  EXPECT_THAT(Parsed(With(Base("llama"), "eos_token_id", nullptr)).eos_ids, IsEmpty());
  EXPECT_EQ(Parsed(With(Base("llama"), "bos_token_id", nullptr)).bos_id, -1);
  EXPECT_THAT(Message(With(Base("llama"), "eos_token_id", 1000)), HasSubstr("0..999"));
  EXPECT_THAT(Message(With(Base("llama"), "eos_token_id", {1, "2"})), HasSubstr("eos_token_id"));
}

TEST(ConfigTest, TheActivationIsLookedUp) {
  EXPECT_EQ(Parsed(With(Base("llama"), "hidden_act", "gelu_pytorch_tanh")).activation,
            GateActivation::kGeluTanh);
  EXPECT_THAT(Message(With(Base("llama"), "hidden_act", "relu")),
              AllOf(HasSubstr("hidden_act is \"relu\""), HasSubstr("silu")));
}

TEST(ConfigTest, RopeIsReadInBothSpellings) {
  json older = With(Base("llama"), "rope_theta", 500000.0);
  older["rope_scaling"] = {{"type", "linear"}, {"factor", 2}};
  json newer = Base("llama");
  newer["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 500000.0}};
  for (const json& config : {older, newer}) {
    const RopeConfig rope = Parsed(config).rope;
    EXPECT_EQ(rope.scaling, RopeScaling::kLinear);
    EXPECT_EQ(rope.factor, 2.0);
    EXPECT_EQ(rope.theta, 500000.0);
  }
}

TEST(ConfigTest, AnUnknownFamilyListsTheKnownOnes) {
  EXPECT_THAT(Message(Base("gpt_neox")), AllOf(HasSubstr("model_type is \"gpt_neox\""),
                                               HasSubstr("llama, mistral, qwen2, qwen3")));
  EXPECT_THAT(Message(json::object()), HasSubstr("model_type is null"));
  EXPECT_THAT(Message(json::array()), HasSubstr("object"));
}

struct BadField {
  const char* key;
  json value;
};

TEST(ConfigTest, EveryFieldOutOfRangeIsNamedWithItsRange) {
  const std::vector<BadField> fields = {
      {"num_hidden_layers", 0},
      {"num_hidden_layers", 1025},
      {"num_hidden_layers", 2.0},
      {"num_hidden_layers", nullptr},
      {"hidden_size", -1},
      {"hidden_size", "256"},
      {"hidden_size", 18446744073709551615ull},
      {"intermediate_size", 0},
      {"num_attention_heads", 0},
      {"num_key_value_heads", 3},
      {"num_key_value_heads", 16},
      {"head_dim", 3},
      {"head_dim", 514},
      {"vocab_size", 0},
      {"max_position_embeddings", 0},
      {"rms_norm_eps", 0.0},
      {"rms_norm_eps", "tiny"},
      {"attention_bias", 1},
      {"mlp_bias", "yes"},
      {"tie_word_embeddings", "no"},
      {"bos_token_id", -3},
      {"bos_token_id", 1000},
      {"rope_theta", 0.0},
      {"rope_theta", {1}},
      {"rope_scaling", "yarn"},
      {"partial_rotary_factor", 1.5},
      {"partial_rotary_factor", 0.01},
  };
  for (const BadField& field : fields) {
    EXPECT_THAT(Message(With(Base("llama"), field.key, field.value)),
                AllOf(HasSubstr(field.key), HasSubstr("must be")))
        << field.value.dump();
  }
}

TEST(ConfigTest, EveryRopeFieldOutOfRangeIsNamedWithItsRange) {
  const json longrope = {{"rope_type", "longrope"},
                         {"short_factor", std::vector<double>(16, 1.0)},
                         {"long_factor", std::vector<double>(16, 1.0)},
                         {"original_max_position_embeddings", 512}};
  const json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 512}};
  const json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}};
  const std::vector<std::pair<json, BadField>> cases = {
      {json::object(), {"rope_type", "spiral"}},
      {json::object(), {"rope_type", 3}},
      {{{"rope_type", "linear"}}, {"factor", nullptr}},
      {{{"rope_type", "linear"}}, {"factor", -2.0}},
      {{{"rope_type", "dynamic"}}, {"factor", 0.0}},
      {yarn, {"beta_fast", 0}},
      {yarn, {"truncate", "no"}},
      {yarn, {"original_max_position_embeddings", 0}},
      {longrope, {"short_factor", {1.0}}},
      {longrope, {"long_factor", std::vector<double>(16, -1.0)}},
      {llama3, {"low_freq_factor", nullptr}},
      {llama3, {"high_freq_factor", 1.0}},
  };
  for (const auto& [section, field] : cases) {
    EXPECT_THAT(Message(With(Base("llama"), "rope_scaling", With(section, field.key, field.value))),
                AllOf(HasSubstr(std::string("rope_scaling.") + field.key), HasSubstr("must be")))
        << section.dump() << field.value.dump();
  }
}

}  // namespace
}  // namespace nibble
