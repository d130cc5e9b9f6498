// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "engine/artifact/quantization_config.h"
#include "engine/artifact/source_files.h"
#include "tests/engine/artifact/tiny_artifact.h"

namespace nibble {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class HfCheckpointTest : public ::testing::Test {
 protected:
  std::string Error() {
    const absl::Status status = Checkpoint::Open(dir_.path()).status();
    EXPECT_FALSE(status.ok());
    return std::string(status.message());
  }
  // A file with these tensors, filled with zeros.
  void WriteWeights(const std::string& name, std::vector<SafetensorsEntry> tensors) {
    std::string file = *BuildSafetensorsHeader(tensors, {});
    file.append(static_cast<size_t>(tensors.empty() ? 0 : tensors.back().end), '\0');
    WriteFile(dir_.File(name), file);
  }
  void WriteConfig(const nlohmann::json& quantization = nullptr) {
    nlohmann::json config = TinyConfig();
    if (!quantization.is_null()) config["quantization_config"] = quantization;
    WriteFile(dir_.File("config.json"), config.dump());
  }
  void WriteIndex(const nlohmann::json& map) {
    WriteFile(dir_.File("model.safetensors.index.json"),
              nlohmann::json{{"weight_map", map}}.dump());
  }
  TempDir dir_;
};

TEST_F(HfCheckpointTest, PlainWeightsAreViewedInPlace) {
  for (const char* type : {"f32", "f16", "bf16"}) {
    WriteTinySource(dir_.path(), type);
    auto checkpoint = Checkpoint::Open(dir_.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const auto view = (*checkpoint)->Weight("model.layers.0.mlp.down_proj");
    ASSERT_TRUE(view.ok()) << view.status();
    EXPECT_EQ(view->scheme->name, type);
    EXPECT_EQ(view->rows, kTinyHidden);
    EXPECT_EQ(view->cols, kTinyIntermediate);
    EXPECT_EQ((*checkpoint)->config(), TinyConfig());
    EXPECT_THAT((*checkpoint)->files(), ElementsAre("model.safetensors"));
    EXPECT_EQ((*checkpoint)->modules().size(), 8u);
    (*checkpoint)->Release("model.layers.0.mlp.down_proj");
    EXPECT_GT(ReadWeight(*view, 0, 0), -1.0f) << "released pages are read again";
  }
}

TEST_F(HfCheckpointTest, WhatIsThereIsAskedFirst) {
  WriteTinySource(dir_.path());
  auto checkpoint = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE((*checkpoint)->HasWeight("model.embed_tokens"));
  EXPECT_FALSE((*checkpoint)->HasWeight("lm_head")) << "the head is tied";
  EXPECT_FALSE((*checkpoint)->HasWeight("model.norm")) << "a norm is no matrix";
  EXPECT_TRUE((*checkpoint)->HasVector("model.norm.weight"));
  EXPECT_FALSE((*checkpoint)->HasVector("model.embed_tokens.weight"));
  EXPECT_EQ((*checkpoint)->Weight("lm_head").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ((*checkpoint)->Vector("x.bias").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ((*checkpoint)->Vector("model.embed_tokens.weight").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(HfCheckpointTest, DataThatIsNotAlignedIsReadAllTheSame) {
  const std::vector<float> values = {1.5f, -2.0f, 3.25f, 0.0f};
  for (const std::string padding : {"", " ", "  ", "   "}) {
    const std::string header =
        R"({"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})" + padding;
    std::string file(8, '\0');
    const uint64_t length = header.size();
    std::memcpy(file.data(), &length, 8);
    file += header;
    file.append(reinterpret_cast<const char*>(values.data()), 16);
    WriteFile(dir_.File("model.safetensors"), file);
    WriteConfig();
    auto checkpoint = Checkpoint::Open(dir_.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ(ReadWeight(*(*checkpoint)->Weight("a"), 1, 0), 3.25f);
  }
}

TEST_F(HfCheckpointTest, ShardsAreFoundThroughTheIndex) {
  WriteConfig();
  WriteWeights("one.safetensors", {{"a.weight", DType::kF32, {2, 3}, 0, 0}});
  WriteWeights("two.safetensors", {{"b.weight", DType::kBF16, {4, 5}, 0, 0}});
  WriteIndex({{"a.weight", "one.safetensors"}, {"b.weight", "two.safetensors"}});
  auto checkpoint = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->files(), ElementsAre("one.safetensors", "two.safetensors"));
  EXPECT_EQ((*checkpoint)->Weight("b")->cols, 5);

  WriteIndex({{"a.weight", "one.safetensors"}, {"b.weight", "one.safetensors"}});
  EXPECT_THAT(Error(), HasSubstr("tensor b.weight is not in \"one.safetensors\""));
  WriteIndex({{"a.weight", "one.safetensors"}, {"b.weight", "three.safetensors"}});
  EXPECT_THAT(Error(), HasSubstr("three.safetensors"));
  WriteWeights("two.safetensors", {{"a.weight", DType::kF32, {2, 3}, 0, 0}});
  WriteIndex({{"a.weight", "one.safetensors"}, {"b.weight", "two.safetensors"}});
  EXPECT_THAT(Error(), HasSubstr("also in another shard"));
}

TEST_F(HfCheckpointTest, AnIndexCannotLeaveItsDirectory) {
  WriteConfig();
  for (const nlohmann::json& name :
       {nlohmann::json("../a.safetensors"), nlohmann::json("/etc/a.safetensors"),
        nlohmann::json("sub/a.safetensors"), nlohmann::json(".a.safetensors"), nlohmann::json(""),
        nlohmann::json("config.json"), nlohmann::json(7)}) {
    WriteIndex({{"a.weight", name}});
    EXPECT_THAT(Error(), HasSubstr("plain file name")) << name;
  }
  WriteFile(dir_.File("model.safetensors.index.json"), R"({"weight_map": []})");
  EXPECT_THAT(Error(), HasSubstr("weight_map"));
}

TEST_F(HfCheckpointTest, WhatIsMissingIsNamed) {
  EXPECT_THAT(Error(), HasSubstr("no config.json"));
  WriteConfig();
  EXPECT_THAT(Error(), HasSubstr("model.safetensors"));
  WriteFile(dir_.File("config.json"), "{");
  WriteWeights("model.safetensors", {});
  EXPECT_THAT(Error(), AllOf(HasSubstr("config.json"), HasSubstr("no JSON")));
  EXPECT_EQ(Checkpoint::Open(dir_.File("nowhere")).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(HfCheckpointTest, TensorsMustBeWhatTheirSchemeStores) {
  const Scheme& scheme = *FindScheme("int4-g32");
  WriteConfig(BuildQuantizationConfig({{"a", &scheme}}));
  const std::vector<SafetensorsEntry> good = WeightEntries({"a", &scheme, 4, 64});
  const auto open_with = [&](size_t index, const SafetensorsEntry& entry) {
    std::vector<SafetensorsEntry> tensors = good;
    tensors[index] = entry;
    std::string file = *BuildSafetensorsHeader(tensors, {});
    for (const SafetensorsEntry& tensor : tensors) {
      file += TinyBytes(tensor, {{"a", &scheme, 4, 64}});
    }
    WriteFile(dir_.File("model.safetensors"), file);
    return Checkpoint::Open(dir_.path());
  };
  EXPECT_TRUE(open_with(0, good[0]).ok());
  const auto message = [&](size_t index, const SafetensorsEntry& entry) {
    const absl::Status status = open_with(index, entry).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message(0, {"a.weight_packed", DType::kI32, {4, 9}, 0, 0}),
              HasSubstr("a.weight_packed is I32 [4, 9], scheme int4-g32 stores I32 [4, 8]"));
  EXPECT_THAT(message(1, {"a.weight_scale", DType::kF16, {4, 2}, 0, 0}),
              HasSubstr("a.weight_scale is F16 [4, 2], scheme int4-g32 stores BF16 [4, 2]"));
  EXPECT_THAT(message(1, {"other", DType::kBF16, {4, 2}, 0, 0}),
              HasSubstr("a.weight_scale is missing"));
  EXPECT_THAT(message(2, {"a.weight_shape", DType::kI32, {2}, 0, 0}),
              HasSubstr("a.weight_shape is missing or not I64 [2]"));

  std::vector<SafetensorsEntry> tensors = good;
  std::string file = *BuildSafetensorsHeader(tensors, {});
  file.append(static_cast<size_t>(tensors.back().end - 16), '\0');
  const int64_t shape[] = {int64_t{1} << 40, -1};
  file.append(reinterpret_cast<const char*>(shape), 16);
  WriteFile(dir_.File("model.safetensors"), file);
  EXPECT_THAT(Error(), HasSubstr("shape [1099511627776, -1]"));
}

TEST_F(HfCheckpointTest, OutlierFeaturesMustBeFeaturesInOrderAndNotTooMany) {
  const Scheme& scheme = *FindScheme("llm-int8");
  WriteConfig(BuildQuantizationConfig({{"a", &scheme}}));
  const auto open_with = [&](int64_t cols, const std::vector<int32_t>& features, int64_t columns) {
    std::vector<SafetensorsEntry> tensors =
        WeightEntries({"a", &scheme, 4, cols, static_cast<int64_t>(features.size())});
    tensors[3].shape[1] = columns;
    std::string file = *BuildSafetensorsHeader(tensors, {});
    for (const SafetensorsEntry& tensor : tensors) {
      std::string bytes = TinyBytes(tensor, {});
      if (tensor.name == "a.outlier_features" && !features.empty()) {
        std::memcpy(bytes.data(), features.data(), bytes.size());
      }
      file += bytes;
    }
    WriteFile(dir_.File("model.safetensors"), file);
    return Checkpoint::Open(dir_.path());
  };
  const auto message = [&](int64_t cols, const std::vector<int32_t>& features, int64_t columns) {
    const absl::Status status = open_with(cols, features, columns).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_TRUE(open_with(64, {0, 5, 63}, 3).ok());
  EXPECT_TRUE(open_with(64, {}, 0).ok());
  EXPECT_THAT(message(64, {0, 5, 64}, 3),
              HasSubstr("a.outlier_features[2] is 64, features must ascend and be in 0..63"));
  EXPECT_THAT(message(64, {-1, 5}, 2), HasSubstr("a.outlier_features[0] is -1"));
  EXPECT_THAT(message(64, {5, 5}, 2), HasSubstr("a.outlier_features[1] is 5"));
  EXPECT_THAT(message(64, {6, 5}, 2), HasSubstr("a.outlier_features[1] is 5"));
  EXPECT_THAT(message(64, {0, 5}, 3),
              HasSubstr("a.weight_outliers is BF16 [4, 3], scheme llm-int8 stores BF16 [4, 2]"));
  EXPECT_THAT(message(2, {0, 1, 2}, 3), HasSubstr("not I32 [n] with n in 0..2"));
  EXPECT_THAT(message(1000, std::vector<int32_t>(257, 1), 257), HasSubstr("n in 0..256"));

  WriteWeights("model.safetensors", {{"a.weight", DType::kI8, {4, 64}, 0, 0},
                                     {"a.weight_scale", DType::kBF16, {4, 1}, 0, 0}});
  EXPECT_THAT(Error(), HasSubstr("a.outlier_features is missing"));
}

TEST_F(HfCheckpointTest, ADirectoryWithOneGgufFileIsThatFile) {
  WriteFile(dir_.File("model.gguf"), "GGUF");
  EXPECT_THAT(Error(), HasSubstr("version"));
  auto files = ListSourceFiles(dir_.path());
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_TRUE(files->gguf);
  EXPECT_THAT(files->names, ElementsAre("model.gguf"));
}

}  // namespace
}  // namespace nibble
