// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/quantization_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

json Weights(const json& fields = json::object()) {
  json weights = {{"num_bits", 4}, {"type", "int"}, {"strategy", "group"}, {"group_size", 128}};
  weights.update(fields);
  return weights;
}

json Group(const json& targets, const json& weights) {
  return {{"targets", targets}, {"weights", weights}};
}

json Section(const json& groups, const json& ignore = json::array()) {
  return {{"quant_method", "compressed-tensors"},
          {"format", "pack-quantized"},
          {"config_groups", groups},
          {"ignore", ignore}};
}

std::string SchemeName(const QuantizationConfig& config, std::string_view module) {
  const auto scheme = config.SchemeOf(module);
  EXPECT_TRUE(scheme.ok()) << scheme.status();
  return *scheme == nullptr ? "" : std::string((*scheme)->name);
}

absl::Status Error(const json& section) { return QuantizationConfig::Parse(section).status(); }

TEST(QuantizationConfigTest, ClassesNamesAndExpressionsAreTargets) {
  const auto config = QuantizationConfig::Parse(Section(
      {{"group_0", Group({"Linear"}, Weights())},
       {"group_1", Group({"re:.*\\.mlp\\.(up|gate)_proj$"}, Weights({{"group_size", 32}}))},
       {"group_2", Group({"model.layers.1.mlp.up_proj"}, Weights({{"group_size", 64}}))},
       {"group_3",
        Group({"Embedding"},
              Weights({{"num_bits", 8}, {"strategy", "channel"}, {"group_size", nullptr}}))}},
      {"lm_head", "re:model\\.layers\\.2\\..*"}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(SchemeName(*config, "model.layers.0.self_attn.q_proj"), "int4-g128");
  EXPECT_EQ(SchemeName(*config, "model.layers.0.mlp.up_proj"), "int4-g32") << "over the class";
  EXPECT_EQ(SchemeName(*config, "model.layers.1.mlp.up_proj"), "int4-g64") << "over all";
  EXPECT_EQ(SchemeName(*config, "model.embed_tokens"), "int8");
  EXPECT_EQ(SchemeName(*config, "lm_head"), "") << "ignored by name";
  EXPECT_EQ(SchemeName(*config, "model.layers.2.mlp.up_proj"), "") << "ignored by expression";
}

TEST(QuantizationConfigTest, ExpressionsAreAnchoredAtTheStartOnly) {
  const auto config =
      QuantizationConfig::Parse(Section({{"g", Group({"re:layers\\.0"}, Weights())}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(SchemeName(*config, "layers.0.mlp"), "int4-g128");
  EXPECT_EQ(SchemeName(*config, "model.layers.0.mlp"), "");
}

TEST(QuantizationConfigTest, WhatIsBuiltIsRead) {
  for (const Scheme& linear : kSchemes) {
    for (const Scheme& embedding : kSchemes) {
      const ModuleSchemes modules = {{"model.embed_tokens", &embedding},
                                     {"model.layers.0.mlp.up_proj", &linear},
                                     {"model.layers.0.mlp.down_proj", &linear},
                                     {"model.layers.0.self_attn.o_proj", FindScheme("bf16")},
                                     {"model.layers.0.self_attn.q_proj", FindScheme("int8-g64")},
                                     {"lm_head", &embedding}};
      const json section = BuildQuantizationConfig(modules);
      ASSERT_FALSE(section.is_null());
      const auto config = QuantizationConfig::Parse(section);
      ASSERT_TRUE(config.ok()) << config.status() << section.dump();
      for (const auto& [module, scheme] : modules) {
        EXPECT_EQ(SchemeName(*config, module), scheme->quantized() ? scheme->name : "") << module;
      }
    }
  }
  EXPECT_TRUE(BuildQuantizationConfig({{"a", FindScheme("bf16")}}).is_null());
}

TEST(QuantizationConfigTest, SchemesAreSaidInTheWordsOfTheDialect) {
  struct Said {
    const char* scheme;
    const char* format;
    json weights;
    json inputs;
  };
  const Said cases[] = {
      {"int3-g128-asym",
       "pack-quantized",
       {{"num_bits", 3}, {"type", "int"}, {"symmetric", false}, {"group_size", 128}},
       nullptr},
      {"fp8",
       "float-quantized",
       {{"num_bits", 8}, {"type", "float"}, {"strategy", "channel"}, {"group_size", nullptr}},
       {{"num_bits", 8}, {"type", "float"}, {"strategy", "token"}, {"dynamic", true}}},
      {"fp8-w8a16", "naive-quantized", {{"num_bits", 8}, {"type", "float"}}, nullptr},
      {"nf4", "nf4-quantized", {{"num_bits", 4}, {"type", "nf4"}, {"group_size", 64}}, nullptr},
      {"nf4-dq", "nf4-double-quantized", {{"num_bits", 4}, {"type", "nf4"}}, nullptr},
      {"llm-int8",
       "llm-int8-quantized",
       {{"num_bits", 8}, {"type", "int"}, {"strategy", "channel"}},
       {{"num_bits", 8}, {"type", "int"}, {"strategy", "token"}, {"dynamic", true}}}};
  for (const Said& said : cases) {
    const json section = BuildQuantizationConfig({{"a", FindScheme(said.scheme)}});
    const json& group = section["config_groups"]["group_0"];
    EXPECT_EQ(section["format"], said.format);
    EXPECT_EQ(group["format"], said.format);
    for (const auto& [key, value] : said.weights.items()) {
      EXPECT_EQ(group["weights"][key], value) << said.scheme << " " << key;
    }
    EXPECT_EQ(group["input_activations"].is_null(), said.inputs.is_null()) << said.scheme;
    for (const auto& [key, value] : said.inputs.items()) {
      EXPECT_EQ(group["input_activations"][key], value) << said.scheme << " " << key;
    }
  }
}

TEST(QuantizationConfigTest, ACombinationWithoutASchemeIsNamed) {
  for (const json& fields :
       {json{{"num_bits", 5}}, json{{"type", "float"}}, json{{"type", "nf4"}},
        json{{"num_bits", 2}}, json{{"group_size", 48}}, json{{"strategy", "tensor_group"}},
        json{{"symmetric", false}, {"num_bits", 8}}}) {
    const absl::Status status = Error(Section({{"g", Group({"Linear"}, Weights(fields))}}));
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << fields;
    EXPECT_THAT(std::string(status.message()), HasSubstr("which is none of the schemes int8"));
  }
  json act_order = Weights({{"actorder", "group"}});
  EXPECT_THAT(std::string(Error(Section({{"g", Group({"Linear"}, act_order)}})).message()),
              HasSubstr("actorder is \"group\""));
  json static_input = Group({"Linear"}, Weights());
  static_input["input_activations"] = {{"num_bits", 8}, {"strategy", "tensor"}};
  EXPECT_THAT(std::string(Error(Section({{"g", static_input}})).message()),
              HasSubstr("input_activations"));
  json other = Section(json::object());
  other["quant_method"] = "gptq";
  EXPECT_EQ(Error(other).code(), absl::StatusCode::kUnimplemented);
}

TEST(QuantizationConfigTest, WrongFieldsAreNamed) {
  const auto message = [](const json& section) {
    const absl::Status status = Error(section);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << section.dump();
    return std::string(status.message());
  };
  EXPECT_THAT(message(json::array()), HasSubstr("quantization_config"));
  EXPECT_THAT(message(Section(json::array())), HasSubstr("config_groups"));
  EXPECT_THAT(message(Section(json::object(), "lm_head")), HasSubstr("ignore"));
  EXPECT_THAT(message(Section({{"g", 1}})), HasSubstr("config_groups.g"));
  EXPECT_THAT(message(Section({{"g", Group("Linear", Weights())}})), HasSubstr("targets"));
  EXPECT_THAT(message(Section({{"g", Group({"Linear"}, nullptr)}})), HasSubstr("weights"));
  EXPECT_THAT(message(Section({{"g", Group({"re:("}, Weights())}})),
              HasSubstr("valid regular expression"));
  EXPECT_THAT(message(Section({{"g", Group({std::string(5000, 'a')}, Weights())}})),
              HasSubstr("4096"));
  for (const char* field : {"num_bits", "group_size", "type", "strategy", "symmetric"}) {
    EXPECT_THAT(message(Section({{"g", Group({"Linear"}, Weights({{field, json::array()}}))}})),
                HasSubstr(field));
  }
}

TEST(QuantizationConfigTest, AnExpressionCannotTakeForEver) {
  const auto config =
      QuantizationConfig::Parse(Section({{"g", Group({"re:(a|aa)+$"}, Weights())}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->SchemeOf(std::string(200, 'a') + "!").status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace nibble
