// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string ErrorOf(const nlohmann::json& json) {
  const absl::StatusOr<Recipe> recipe = Recipe::FromJson(json);
  EXPECT_EQ(recipe.status().code(), absl::StatusCode::kInvalidArgument) << json;
  return std::string(recipe.status().message());
}

TEST(Recipe, BuiltinsAreValidAndSurviveJson) {
  EXPECT_THAT(BuiltinRecipeNames(), ElementsAre("rtn", "mse", "gptq", "awq", "awq-gptq",
                                                "smoothquant", "smoothquant-gptq"));
  for (const std::string_view name : BuiltinRecipeNames()) {
    const absl::StatusOr<Recipe> recipe = BuiltinRecipe(name);
    ASSERT_TRUE(recipe.ok());
    EXPECT_EQ(recipe->name, name);
    EXPECT_TRUE(Validate(*recipe).ok()) << name;
    const absl::StatusOr<Recipe> again = Recipe::FromJson(recipe->ToJson());
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->ToJson(), recipe->ToJson());
  }
}

TEST(Recipe, OnlyWhatLooksAtActivationsNeedsCalibration) {
  EXPECT_FALSE(BuiltinRecipe("rtn")->needs_calibration());
  EXPECT_FALSE(BuiltinRecipe("mse")->needs_calibration());
  EXPECT_TRUE(BuiltinRecipe("gptq")->needs_calibration());
  EXPECT_TRUE(BuiltinRecipe("awq")->needs_calibration());
  EXPECT_TRUE(BuiltinRecipe("smoothquant")->needs_calibration());
  Recipe recipe = *BuiltinRecipe("rtn");
  recipe.overrides = {{"*.down_proj", "llm-int8"}};
  EXPECT_TRUE(recipe.needs_calibration()) << "finds the outliers";
  recipe.overrides.clear();
  recipe.scheme = "llm-int8";
  EXPECT_TRUE(recipe.needs_calibration());
}

TEST(Recipe, JsonCarriesEveryField) {
  Recipe recipe;
  recipe.name = "mine";
  recipe.transforms = {Transform::kAwq};
  recipe.rounder = Rounder::kGptq;
  recipe.awq = {7, false};
  recipe.smoothquant = {0.25};
  recipe.gptq = {64, 0.05, false, false};
  recipe.llm_int8 = {4.5};
  recipe.scheme = "int4-g32-asym";
  recipe.overrides = {{"layers.0.*", "int8"}, {"lm_head", "int8-g128"}};
  recipe.embedding_scheme = "int8";
  recipe.head_scheme = "int4-g64";
  recipe.kv_format = "int8";
  recipe.true_sequential = false;
  const absl::StatusOr<Recipe> again = Recipe::FromJson(recipe.ToJson());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->ToJson(), recipe.ToJson());
  EXPECT_EQ(again->gptq.block_columns, 64);
  EXPECT_EQ(again->llm_int8.threshold, 4.5);
  EXPECT_EQ(again->overrides.at(1).scheme, "int8-g128");
}

TEST(Recipe, MissingFieldsHaveTheirDefaults) {
  const absl::StatusOr<Recipe> recipe = Recipe::FromJson({{"rounder", "gptq"}});
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  Recipe expected;
  expected.rounder = Rounder::kGptq;
  EXPECT_EQ(recipe->ToJson(), expected.ToJson());
}

TEST(Recipe, ErrorsNameTheFieldAndWhatIsAllowed) {
  EXPECT_THAT(ErrorOf(nlohmann::json::array()), HasSubstr("recipe must be an object"));
  EXPECT_THAT(ErrorOf({{"shceme", "int8"}}), AllOf(HasSubstr("shceme"), HasSubstr("scheme")));
  EXPECT_THAT(ErrorOf({{"scheme", "int5"}}),
              AllOf(HasSubstr("recipe.scheme"), HasSubstr("'int5'"), HasSubstr("int4-g128")));
  EXPECT_THAT(ErrorOf({{"scheme", 4}}), HasSubstr("recipe.scheme must be a string"));
  EXPECT_THAT(ErrorOf({{"rounder", "qtip"}}),
              AllOf(HasSubstr("'qtip'"), HasSubstr("rtn, mse, gptq")));
  EXPECT_THAT(ErrorOf({{"transforms", {"spin"}}}),
              AllOf(HasSubstr("'spin'"), HasSubstr("awq, smoothquant")));
  EXPECT_THAT(ErrorOf({{"transforms", {"awq", "awq"}}}), HasSubstr("more than once"));
  EXPECT_THAT(ErrorOf({{"transforms", {"smoothquant"}}, {"scheme", "int4-g128"}}),
              HasSubstr("w8a8 or fp8"));
  EXPECT_THAT(ErrorOf({{"transforms", {"awq"}}, {"scheme", "bf16"}}), HasSubstr("no meaning"));
  EXPECT_THAT(ErrorOf({{"kv_format", "int3"}}),
              AllOf(HasSubstr("recipe.kv_format"), HasSubstr("f32, bf16, fp8, int8, k8v4, int4")));
  EXPECT_THAT(ErrorOf({{"embedding_scheme", "w8a8"}}), HasSubstr("weight-only"));
  EXPECT_THAT(ErrorOf({{"embedding_scheme", "fp8"}}), HasSubstr("weight-only"));
  EXPECT_THAT(ErrorOf({{"awq", {{"grid", 0}}}}), HasSubstr("between 1 and 100"));
  EXPECT_THAT(ErrorOf({{"awq", {{"grid", 1.5}}}}), HasSubstr("whole number"));
  EXPECT_THAT(ErrorOf({{"awq", {{"gird", 3}}}}), HasSubstr("recipe.awq has no field 'gird'"));
  EXPECT_THAT(ErrorOf({{"gptq", {{"block_columns", 8}}}}), HasSubstr("between 16 and 1024"));
  EXPECT_THAT(ErrorOf({{"gptq", {{"damping", 0}}}}), HasSubstr("recipe.gptq.damping"));
  EXPECT_THAT(ErrorOf({{"smoothquant", {{"alpha", 2}}}}), HasSubstr("between -1 and 1"));
  EXPECT_THAT(ErrorOf({{"llm_int8", {{"threshold", 0}}}}), HasSubstr("recipe.llm_int8.threshold"));
  EXPECT_THAT(ErrorOf({{"head_scheme", "llm-int8"}}), HasSubstr("outliers are calibrated"));
  EXPECT_THAT(ErrorOf({{"overrides", {{{"pattern", "*"}, {"scheme", "int1"}}}}}),
              HasSubstr("recipe.overrides[0].scheme"));
  EXPECT_THAT(ErrorOf({{"overrides", {{{"scheme", "int8"}}}}}), HasSubstr("pattern"));
  EXPECT_THAT(ErrorOf({{"true_sequential", "yes"}}), HasSubstr("true or false"));
}

TEST(Recipe, UnknownBuiltinListsTheKnownOnes) {
  EXPECT_THAT(std::string(BuiltinRecipe("gtpq").status().message()), HasSubstr("gptq"));
}

TEST(SchemeFor, PatternsSelectModulesAndTheLastOneWins) {
  Recipe recipe;
  recipe.scheme = "int4-g128";
  recipe.head_scheme = "int8";
  recipe.embedding_scheme = "bf16";
  recipe.overrides = {
      {"layers.?.mlp.down_proj", "int8"}, {"layers.3.*", "int8-g32"}, {"*v_proj", "bf16"}};
  EXPECT_EQ(SchemeFor(recipe, "layers.1.self_attn.q_proj"), "int4-g128");
  EXPECT_EQ(SchemeFor(recipe, "layers.1.mlp.down_proj"), "int8");
  EXPECT_EQ(SchemeFor(recipe, "layers.11.mlp.down_proj"), "int4-g128");
  EXPECT_EQ(SchemeFor(recipe, "model.layers.3.mlp.down_proj"), "int8-g32");
  EXPECT_EQ(SchemeFor(recipe, "layers.3.self_attn.v_proj"), "bf16");
  EXPECT_EQ(SchemeFor(recipe, "lm_head"), "int8");
  EXPECT_EQ(SchemeFor(recipe, "embed_tokens"), "bf16");
  recipe.overrides.push_back({"lm_*", "int4-g32"});
  EXPECT_EQ(SchemeFor(recipe, "lm_head"), "int4-g32");
}

}  // namespace
}  // namespace nibble
