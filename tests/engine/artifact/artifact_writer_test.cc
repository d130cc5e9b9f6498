// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/artifact_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "engine/artifact/checkpoint.h"
#include "engine/artifact/source_files.h"
#include "tests/engine/artifact/tiny_artifact.h"
#include "tests/support/fault_fs.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::string_view kLinear = "model.layers.0.mlp.down_proj";

class ArtifactWriterTest : public ::testing::Test {
 protected:
  ArtifactWriterTest() {
    std::filesystem::create_directory(source_);
    WriteTinySource(source_);
  }
  std::string NewDirectory(const std::string& name) {
    const std::string path = dir_.File(name);
    std::filesystem::create_directory(path);
    return path;
  }
  ArtifactSpec Spec(const char* linear, const char* embedding = "bf16") {
    return TinySpec(source_, TinyModules(FindScheme(linear), FindScheme(embedding)));
  }

  TempDir dir_;
  const std::string source_ = dir_.File("source");
};

TEST_F(ArtifactWriterTest, EverySchemeComesBackAsItWasWritten) {
  for (const Scheme& scheme : kSchemes) {
    SCOPED_TRACE(std::string(scheme.name));
    const std::string directory = NewDirectory(std::string(scheme.name));
    const ArtifactSpec spec = TinySpec(source_, TinyModules(&scheme, &scheme));
    auto summary = WriteTinyArtifact(PosixFileSystem(), directory, spec);
    ASSERT_TRUE(summary.ok()) << summary.status();

    auto checkpoint = Checkpoint::Open(directory);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const ModuleWeight& module : spec.modules) {
      auto view = (*checkpoint)->Weight(module.name);
      ASSERT_TRUE(view.ok()) << view.status();
      EXPECT_EQ(view->scheme, &scheme);
      EXPECT_EQ(view->rows, module.rows);
      EXPECT_EQ(view->cols, module.cols);
      EXPECT_EQ(view->outliers, module.outliers);
      for (const SafetensorsEntry& tensor : WeightEntries(module)) {
        const std::string bytes = TinyBytes(tensor, spec.modules);
        const void* stored = tensor.name.ends_with("_scale")        ? view->scales
                             : tensor.name.ends_with("_nested")     ? view->nested
                             : tensor.name.ends_with("_zero_point") ? view->zeros
                             : tensor.name.ends_with("_shape")      ? nullptr
                             : tensor.name.ends_with("_outliers")   ? view->outlier_weights
                             : tensor.name.ends_with("_features")   ? view->outlier_features
                                                                    : view->codes;
        if (stored == nullptr) continue;
        EXPECT_EQ(std::memcmp(stored, bytes.data(), bytes.size()), 0) << tensor.name;
      }
    }
    EXPECT_EQ((*checkpoint)->Vector("model.norm.weight")->size(), kTinyHidden);
    EXPECT_EQ(*VerifyArtifact(directory), summary->digest);
  }
}

TEST_F(ArtifactWriterTest, AModuleMayHaveNoOutliers) {
  std::vector<ModuleWeight> modules = TinyModules(FindScheme("llm-int8"), FindScheme("bf16"));
  for (ModuleWeight& module : modules) module.outliers = 0;
  const std::string directory = NewDirectory("none");
  auto summary = WriteTinyArtifact(PosixFileSystem(), directory, TinySpec(source_, modules));
  ASSERT_TRUE(summary.ok()) << summary.status();
  auto checkpoint = Checkpoint::Open(directory);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->Weight(kLinear)->outliers, 0);
  EXPECT_EQ((*checkpoint)->Weight(kLinear)->scheme, FindScheme("llm-int8"));
}

TEST_F(ArtifactWriterTest, SchemesMayDifferFromModuleToModule) {
  std::vector<ModuleWeight> modules = TinyModules(FindScheme("int4-g64"), FindScheme("int8"));
  modules[2].scheme = FindScheme("int8");
  modules[3].scheme = FindScheme("bf16");
  modules[6].scheme = FindScheme("w8a8");
  modules[7].scheme = FindScheme("int4-g32-asym");
  modules.push_back({"lm_head", FindScheme("int8-g32"), kTinyVocab, kTinyHidden});
  const std::string directory = NewDirectory("mixed");
  auto summary = WriteTinyArtifact(PosixFileSystem(), directory, TinySpec(source_, modules));
  ASSERT_TRUE(summary.ok()) << summary.status();
  auto checkpoint = Checkpoint::Open(directory);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const ModuleWeight& module : modules) {
    EXPECT_EQ((*checkpoint)->Weight(module.name)->scheme, module.scheme) << module.name;
  }
  const nlohmann::json& config = (*checkpoint)->config();
  EXPECT_EQ(config["quantization_config"]["format"], "mixed-precision");
  EXPECT_EQ(config["quantization_config"]["ignore"],
            nlohmann::json({"model.layers.0.self_attn.v_proj"}));
  EXPECT_EQ(config["tie_word_embeddings"], false) << "a head of its own unties it";
}

TEST_F(ArtifactWriterTest, TheConfigOfTheSourceIsKeptApartFromWhatChanged) {
  const std::string directory = NewDirectory("artifact");
  ASSERT_TRUE(WriteTinyArtifact(PosixFileSystem(), directory, Spec("int4-g32")).ok());
  nlohmann::json config = nlohmann::json::parse(ReadFile(directory + "/config.json"));
  const nlohmann::json quantization = config["quantization_config"];
  EXPECT_EQ(quantization["quant_method"], "compressed-tensors");
  EXPECT_EQ(quantization["format"], "pack-quantized");
  EXPECT_EQ(quantization["config_groups"]["group_0"]["targets"], nlohmann::json({"Linear"}));
  EXPECT_EQ(quantization["ignore"], nlohmann::json({"lm_head"})) << "the tied head stays plain";
  EXPECT_EQ(config["torch_dtype"], "bfloat16");
  config.erase("quantization_config");
  config["torch_dtype"] = "float32";
  EXPECT_EQ(config, TinyConfig());
}

TEST_F(ArtifactWriterTest, ATokenizerIsCarriedByteForByteAndNothingElse) {
  const std::string directory = NewDirectory("artifact");
  ASSERT_TRUE(WriteTinyArtifact(PosixFileSystem(), directory, Spec("int4-g32")).ok());
  EXPECT_EQ(ReadFile(directory + "/tokenizer.json"), ReadFile(source_ + "/tokenizer.json"));
  EXPECT_THAT(*PosixFileSystem().List(directory),
              ElementsAre("config.json", "model.safetensors", "nibble.json", "tokenizer.json"));
}

TEST_F(ArtifactWriterTest, LargeModelsAreCutIntoShards) {
  ArtifactSpec spec = Spec("int4-g32");
  spec.max_shard_bytes = 8192;
  const std::string sharded = NewDirectory("sharded");
  auto summary = WriteTinyArtifact(PosixFileSystem(), sharded, spec);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_FALSE(std::filesystem::exists(sharded + "/model.safetensors"));
  auto checkpoint = Checkpoint::Open(sharded);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_GT((*checkpoint)->files().size(), 2u);
  EXPECT_EQ((*checkpoint)->tensors().size(), spec.tensors.size());
  EXPECT_EQ(*VerifyArtifact(sharded), summary->digest);
}

TEST_F(ArtifactWriterTest, BlockFilesGiveTheSameArtifactAsASingleStream) {
  const ArtifactSpec spec = Spec("int4-g32-asym");
  auto streamed = WriteTinyArtifact(PosixFileSystem(), NewDirectory("streamed"), spec);
  ASSERT_TRUE(streamed.ok()) << streamed.status();

  auto writer = ArtifactWriter::Create(PosixFileSystem(), NewDirectory("assembled"), spec);
  ASSERT_TRUE(writer.ok()) << writer.status();
  const size_t half = spec.tensors.size() / 2;
  for (const auto& [begin, end] : {std::pair(size_t{0}, half), {half, spec.tensors.size()}}) {
    const std::vector<SafetensorsEntry> part(spec.tensors.begin() + static_cast<long>(begin),
                                             spec.tensors.begin() + static_cast<long>(end));
    const std::string path = dir_.File("part" + std::to_string(begin));
    auto file = SafetensorsWriter::Create(PosixFileSystem(), path, part);
    ASSERT_TRUE(file.ok()) << file.status();
    for (const SafetensorsEntry& tensor : part) {
      ASSERT_TRUE((*file)->Append(tensor.name, TinyBytes(tensor, spec.modules)).ok());
    }
    ASSERT_TRUE((*file)->Finish().ok());
    absl::Status status = (*writer)->AppendFile(path);
    ASSERT_TRUE(status.ok()) << status;
  }
  auto assembled = (*writer)->Finish();
  ASSERT_TRUE(assembled.ok()) << assembled.status();
  EXPECT_EQ(assembled->digest, streamed->digest);
}

TEST_F(ArtifactWriterTest, BitsAreCountedFromBytes) {
  auto summary = WriteTinyArtifact(PosixFileSystem(), NewDirectory("artifact"), Spec("int8"));
  ASSERT_TRUE(summary.ok()) << summary.status();
  // Per row of k weights 8k bits of codes and 16 of scale; per module 128 bits of shape.
  double bits = 0;
  double weights = 0;
  for (const ModuleWeight& module : Spec("int8").modules) {
    if (module.name == "model.embed_tokens") continue;
    // Rows of codes are whole 32-bit words.
    bits += static_cast<double>(module.rows * ((module.cols * 8 + 31) / 32 * 32 + 16) + 128);
    weights += static_cast<double>(module.rows * module.cols);
  }
  EXPECT_DOUBLE_EQ(summary->bits.quantized, bits / weights);
  const double embedding = kTinyVocab * kTinyHidden;
  EXPECT_DOUBLE_EQ(summary->bits.total, (bits + 16 * embedding) / (weights + embedding));
}

TEST_F(ArtifactWriterTest, TheDigestNamesEveryByteThatMatters) {
  const std::string directory = NewDirectory("artifact");
  auto summary = WriteTinyArtifact(PosixFileSystem(), directory, Spec("int4-g32"));
  ASSERT_TRUE(summary.ok()) << summary.status();
  WriteFile(directory + "/run.json", "{}");
  EXPECT_EQ(*VerifyArtifact(directory), summary->digest) << "run.json is not digested";

  for (const char* name : {"model.safetensors", "config.json", "tokenizer.json"}) {
    const std::string path = directory + "/" + name;
    const std::string before = ReadFile(path);
    std::string damaged = before;
    damaged.back() = static_cast<char>(damaged.back() ^ 1);
    WriteFile(path, damaged);
    EXPECT_EQ(VerifyArtifact(directory).status().code(), absl::StatusCode::kDataLoss) << name;
    std::filesystem::remove(path);
    EXPECT_EQ(VerifyArtifact(directory).status().code(), absl::StatusCode::kDataLoss) << name;
    WriteFile(path, before);
  }
  WriteFile(directory + "/tokenizer.model", "smuggled in");
  EXPECT_THAT(VerifyArtifact(directory).status().message(), HasSubstr("tokenizer.model"));
}

TEST_F(ArtifactWriterTest, TheDigestIsTheSha256OfSha256sumsLines) {
  const std::string directory = NewDirectory("artifact");
  auto summary = WriteTinyArtifact(PosixFileSystem(), directory, Spec("int4-g32"));
  ASSERT_TRUE(summary.ok()) << summary.status();
  std::string lines;
  const std::vector<std::string> names = *PosixFileSystem().List(directory);
  for (const std::string& name : names) {
    lines += Sha256Hex(ReadFile(directory + "/" + name)) + "  " + name + "\n";
  }
  EXPECT_EQ(summary->digest, Sha256Hex(lines));
}

TEST_F(ArtifactWriterTest, TensorsOutOfOrderOrMissingAreErrors) {
  const ArtifactSpec spec = Spec("int4-g32");
  auto writer = ArtifactWriter::Create(PosixFileSystem(), NewDirectory("a"), spec);
  ASSERT_TRUE(writer.ok());
  EXPECT_THAT((*writer)->Append("model.norm.weight", "12").message(), HasSubstr("out of order"));
  const SafetensorsEntry& first = spec.tensors[0];
  const std::string bytes = TinyBytes(first, spec.modules);
  EXPECT_THAT((*writer)->Append(first.name, bytes + "1").message(), HasSubstr("bytes"));
  EXPECT_TRUE((*writer)->Append(first.name, bytes).ok());
  EXPECT_EQ((*writer)->Finish().status().code(), absl::StatusCode::kFailedPrecondition);

  ArtifactSpec unlisted = Spec("int4-g32");
  std::erase_if(unlisted.tensors, [](const SafetensorsEntry& tensor) {
    return tensor.name == std::string(kLinear) + ".weight_scale";
  });
  EXPECT_THAT(
      ArtifactWriter::Create(PosixFileSystem(), NewDirectory("b"), unlisted).status().message(),
      HasSubstr("down_proj.weight_scale"));
}

TEST_F(ArtifactWriterTest, AFailingDiskIsReportedAtEveryOperation) {
  ArtifactSpec spec = Spec("int4-g32");
  spec.max_shard_bytes = 16384;
  FaultFileSystem fs(dir_.path());
  ASSERT_TRUE(WriteTinyArtifact(fs, NewDirectory("whole"), spec).ok());
  const int64_t operations = fs.operations();
  ASSERT_GT(operations, 20);
  for (int64_t i = 0; i < operations; ++i) {
    const std::string directory = NewDirectory("failing");
    fs.Fail(fs.operations() + i, absl::ResourceExhaustedError("disk full"));
    EXPECT_EQ(WriteTinyArtifact(fs, directory, spec).status().code(),
              absl::StatusCode::kResourceExhausted)
        << "operation " << i;
    fs.StopFailing();
    std::filesystem::remove_all(directory);
  }
}

TEST_F(ArtifactWriterTest, AFinishedArtifactSurvivesAPowerCut) {
  FaultFileSystem fs(dir_.path());
  const std::string directory = dir_.File("artifact");
  ASSERT_TRUE(fs.CreateDirectory(directory).ok());
  ASSERT_TRUE(fs.SyncDirectory(dir_.path()).ok());
  auto summary = WriteTinyArtifact(fs, directory, Spec("int4-g32"));
  ASSERT_TRUE(summary.ok()) << summary.status();
  fs.Crash();
  EXPECT_EQ(*VerifyArtifact(directory), summary->digest);
}

TEST_F(ArtifactWriterTest, TheSourceDigestCoversWhatTheModelSays) {
  const std::string before = *SourceDigest(source_);
  WriteFile(source_ + "/notes.txt", "still no part of the model");
  EXPECT_EQ(*SourceDigest(source_), before);
  WriteFile(source_ + "/tokenizer.json", "{}");
  EXPECT_NE(*SourceDigest(source_), before);
  EXPECT_EQ(SourceDigest(source_, [] { return absl::CancelledError("stop"); }).status().code(),
            absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace nibble
