// SPDX-License-Identifier: Apache-2.0
// config.json with any value in any field: an error that names the field or a usable result.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "engine/model/config.h"

namespace nibble {
namespace {

using nlohmann::json;

json Rich(const char* family, const json& rope) {
  json config = {{"model_type", family},
                 {"hidden_size", 128},
                 {"intermediate_size", 256},
                 {"num_hidden_layers", 2},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"head_dim", 32},
                 {"vocab_size", 100},
                 {"max_position_embeddings", 512},
                 {"original_max_position_embeddings", 256},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 10000.0},
                 {"partial_rotary_factor", 1.0},
                 {"hidden_act", "silu"},
                 {"attention_bias", false},
                 {"mlp_bias", false},
                 {"tie_word_embeddings", true},
                 {"sliding_window", 64},
                 {"use_sliding_window", true},
                 {"max_window_layers", 1},
                 {"layer_types", {"full_attention", "sliding_attention"}},
                 {"bos_token_id", 1},
                 {"eos_token_id", {2, 3}}};
  if (!rope.is_null()) config["rope_scaling"] = rope;
  return config;
}

const std::vector<json>& HostileValues() {
  static const auto* const values = new std::vector<json>{nullptr,
                                                          true,
                                                          0,
                                                          1,
                                                          2,
                                                          -1,
                                                          7,
                                                          511,
                                                          std::numeric_limits<int64_t>::max(),
                                                          std::numeric_limits<int64_t>::min(),
                                                          std::numeric_limits<uint64_t>::max(),
                                                          0.5,
                                                          -0.0,
                                                          1e-300,
                                                          1e300,
                                                          "",
                                                          "yarn",
                                                          "linear",
                                                          std::string(1000, 'x'),
                                                          json::array(),
                                                          json::array({nullptr}),
                                                          json::array({1, 2, 3}),
                                                          json(std::vector<double>(16, 1e-5)),
                                                          json::object(),
                                                          {{"rope_type", "llama3"}},
                                                          {{"factor", -1}}};
  return *values;
}

void Use(const json& config) {
  const auto parsed = ParseDecoderConfig(config);
  if (!parsed.ok()) {
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_LT(parsed.status().message().size(), 1000u);
    return;
  }
  EXPECT_EQ(parsed->window.size(), static_cast<size_t>(parsed->layers));
  EXPECT_EQ(parsed->heads % parsed->kv_heads, 0);
  for (const int64_t context : {int64_t{1}, int64_t{1} << 28}) {
    const RopeTables tables = MakeRopeTables(parsed->rope, 3, context, parsed->max_positions);
    ASSERT_EQ(tables.cos.size(), static_cast<size_t>(3 * parsed->rope.rotary_dim / 2));
    for (const float value : tables.cos) EXPECT_TRUE(std::isfinite(value)) << config.dump();
    for (const float value : tables.sin) EXPECT_TRUE(std::isfinite(value)) << config.dump();
  }
}

TEST(ConfigHostileTest, AnyValueInAnyField) {
  const std::vector<json> ropes = {nullptr,
                                   {{"rope_type", "linear"}, {"factor", 2.0}},
                                   {{"rope_type", "dynamic"}, {"factor", 2.0}},
                                   {{"rope_type", "yarn"},
                                    {"factor", 2.0},
                                    {"beta_fast", 32},
                                    {"beta_slow", 1},
                                    {"mscale", 1.0},
                                    {"mscale_all_dim", 0.5},
                                    {"attention_factor", nullptr},
                                    {"truncate", true}},
                                   {{"rope_type", "longrope"},
                                    {"short_factor", std::vector<double>(16, 1.0)},
                                    {"long_factor", std::vector<double>(16, 4.0)},
                                    {"factor", 2.0}},
                                   {{"rope_type", "llama3"},
                                    {"factor", 8.0},
                                    {"low_freq_factor", 1.0},
                                    {"high_freq_factor", 4.0}}};
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
    for (const json& rope : ropes) {
      const json good = Rich(family, rope);
      ASSERT_TRUE(ParseDecoderConfig(good).ok()) << ParseDecoderConfig(good).status();
      for (const json& value : HostileValues()) {
        for (const auto& [key, before] : good.items()) {
          json config = good;
          config[key] = value;
          Use(config);
        }
        if (rope.is_null()) continue;
        for (const auto& [key, before] : rope.items()) {
          json config = good;
          config["rope_scaling"][key] = value;
          Use(config);
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble
