// SPDX-License-Identifier: Apache-2.0
// Files that were cut, flipped or made to harm: an error or a harmless success, never a crash. Runs
// under the address sanitizer too, which makes a stray read fail.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <random>
#include <utility>

#include "engine/artifact/checkpoint.h"
#include "engine/artifact/gguf.h"
#include "engine/artifact/gguf_model.h"
#include "engine/artifact/gguf_tokenizer.h"
#include "engine/artifact/manifest.h"
#include "engine/artifact/safetensors.h"
#include "tests/engine/artifact/gguf_file.h"
#include "tests/engine/artifact/tiny_artifact.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr int kFlips = 4000;

// Calls `use` with every prefix of `bytes` up to `boundary`, and some beyond it.
void ForEachTruncation(const std::string& bytes, size_t boundary,
                       const std::function<void(const std::string&)>& use) {
  for (size_t size = 0; size < bytes.size(); size += size < boundary ? 1 : 97) {
    use(bytes.substr(0, size));
  }
}

// Calls `use` with copies that differ in one to four bytes of the first `boundary`; the same ones
// every time.
void ForEachFlip(const std::string& bytes, size_t boundary,
                 const std::function<void(const std::string&)>& use) {
  std::mt19937 random(20);
  for (int i = 0; i < kFlips; ++i) {
    std::string damaged = bytes;
    const int count = 1 + static_cast<int>(random() % 4);
    for (int k = 0; k < count; ++k) {
      const size_t at = random() % boundary;
      damaged[at] = random() % 2 == 0 ? static_cast<char>(damaged[at] ^ (1 << (random() % 8)))
                                      : static_cast<char>(random() % 256);
    }
    use(damaged);
  }
}

// Touches everything that a model consists of.
void ReadAll(const Checkpoint& checkpoint) {
  volatile float sink = 0;
  for (const ModuleInfo& module : checkpoint.modules()) {
    const auto view = checkpoint.Weight(module.name);
    if (!view.ok()) continue;
    sink = ReadWeight(*view, 0, 0) + ReadWeight(*view, view->rows - 1, view->cols - 1);
    checkpoint.Release(module.name);
  }
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    const auto values = checkpoint.Vector(tensor.name);
    if (values.ok() && !values->empty()) sink = values->back();
  }
  (void)sink;
}

GgufBuilder SmallGguf() {
  GgufBuilder builder;
  builder.String("general.architecture", "llama")
      .U32("llama.embedding_length", 32)
      .U32("llama.feed_forward_length", 64)
      .U32("llama.block_count", 1)
      .U32("llama.attention.head_count", 2)
      .U32("llama.context_length", 64)
      .F32("llama.attention.layer_norm_rms_epsilon", 1e-5f)
      .String("tokenizer.ggml.model", "llama")
      .Strings("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "a", "b", "ab"})
      .Numbers<float>("tokenizer.ggml.scores", 6, {0, 0, 0, -1, -2, -3})
      .Numbers<int32_t>("tokenizer.ggml.token_type", 5, {2, 3, 3, 1, 1, 1})
      .U32("tokenizer.ggml.bos_token_id", 1)
      .U32("tokenizer.ggml.eos_token_id", 2)
      .Tensor("token_embd.weight", 8, {6, 32}, std::string(6 * 34, '\x01'))
      .Tensor("blk.0.attn_q.weight", 2, {32, 32}, std::string(32 * 18, '\x02'))
      .Tensor("output_norm.weight", 0, {32}, std::string(128, '\0'));
  return builder;
}

TEST(HostileTest, CutSafetensorsHeadersAreErrors) {
  const std::vector<ModuleWeight> modules =
      TinyModules(FindScheme("int4-g32-asym"), FindScheme("int8"));
  std::vector<SafetensorsEntry> tensors = TinyTensors(modules);
  std::string file = *BuildSafetensorsHeader(tensors, {{"format", "pt"}});
  const size_t header = file.size();
  file.append(static_cast<size_t>(tensors.back().end), '\0');
  ASSERT_TRUE(ParseSafetensorsHeader(file, "file").ok());
  ForEachTruncation(file, header, [](const std::string& cut) {
    EXPECT_EQ(ParseSafetensorsHeader(cut, "file").status().code(),
              absl::StatusCode::kInvalidArgument)
        << cut.size();
  });
}

TEST(HostileTest, FlippedSafetensorsHeadersAreErrorsOrStayInsideTheFile) {
  const std::vector<ModuleWeight> modules =
      TinyModules(FindScheme("int4-g32-asym"), FindScheme("int8"));
  std::vector<SafetensorsEntry> tensors = TinyTensors(modules);
  std::string file = *BuildSafetensorsHeader(tensors, {{"format", "pt"}});
  const size_t header = file.size();
  file.append(static_cast<size_t>(tensors.back().end), '\0');
  ForEachFlip(file, header, [&file](const std::string& damaged) {
    const auto parsed = ParseSafetensorsHeader(damaged, "file");
    if (!parsed.ok()) return;
    for (const SafetensorsEntry& entry : parsed->tensors) {
      ASSERT_GE(entry.begin, 0);
      ASSERT_LE(entry.begin, entry.end);
      ASSERT_LE(parsed->data_start + entry.end, static_cast<int64_t>(file.size()));
    }
  });
}

TEST(HostileTest, CutGgufFilesAreErrors) {
  const std::string file = SmallGguf().File();
  ASSERT_TRUE(ParseGguf(file, "file").ok());
  // Cutting what pads the last tensor takes nothing away.
  for (size_t size = 0; size < file.size() - 32; ++size) {
    EXPECT_EQ(ParseGguf(std::string_view(file).substr(0, size), "file").status().code(),
              absl::StatusCode::kInvalidArgument)
        << size;
  }
}

TEST(HostileTest, FlippedGgufFilesNeverCrash) {
  const std::string file = SmallGguf().File();
  TempDir dir;
  int opened = 0;
  ForEachFlip(file, file.size(), [&](const std::string& damaged) {
    const auto parsed = ParseGguf(damaged, "file");
    if (!parsed.ok()) return;
    const auto vocab = GgufVocabulary(*parsed);
    if (vocab.ok()) (void)TokenizerFiles(*vocab);
    const std::string path = dir.File("model.gguf");
    std::filesystem::remove(path);
    WriteFile(path, damaged);
    const auto checkpoint = Checkpoint::Open(path);
    if (!checkpoint.ok()) return;
    ++opened;
    ReadAll(**checkpoint);
  });
  EXPECT_GT(opened, 0) << "flips in the data are no errors";
}

TEST(HostileTest, HugeCountsAllocateNothingAndAreNamed) {
  const auto bytes = [](auto number) { return GgufBuilder::Bytes(number); };
  const uint64_t huge = ~uint64_t{0} / 16;
  const std::string head = "GGUF" + bytes(uint32_t{3});
  const std::string pad(4096, '\0');
  const std::pair<std::string, const char*> files[] = {
      {head + bytes(huge) + bytes(uint64_t{0}) + pad, "tensor count is 1152921504606846975"},
      {head + bytes(uint64_t{0}) + bytes(huge) + pad, "key count is 1152921504606846975"},
      {head + bytes(uint64_t{0}) + bytes(uint64_t{1}) + bytes(huge) + pad, "length is 11529"},
      // An array of numbers, one of strings, and an array of arrays.
      {GgufBuilder().Raw("k", 9, bytes(uint32_t{5}) + bytes(huge)).File() + pad,
       "key \"k\": array length is 1152921504606846975"},
      {GgufBuilder().Raw("k", 9, bytes(uint32_t{8}) + bytes(huge)).File() + pad,
       "key \"k\": array length is 1152921504606846975"},
      {GgufBuilder().Raw("k", 9, bytes(uint32_t{9}) + bytes(uint64_t{1})).File() + pad,
       "key \"k\": an array of type 9"},
      {GgufBuilder().Raw("k", 8, bytes(huge)).File() + pad, "key \"k\": length is 11529"},
      {GgufBuilder().Raw("k", 77, bytes(huge)).File() + pad, "key \"k\": type is 77"},
      {GgufBuilder().Tensor("t", 0, {int64_t{1} << 39, int64_t{1} << 39}, pad).File(),
       "tensor \"t\" is larger than 2^63 bytes"},
      {GgufBuilder().Tensor("t", 0, {0}, pad).File(), "tensor \"t\": an extent is 0"}};
  for (const auto& [file, problem] : files) {
    const absl::Status status = ParseGguf(file, "file").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(problem));
  }
}

TEST(HostileTest, AGgufTextOfAnotherTypeIsNamed) {
  for (const char* key : {"tokenizer.ggml.pre", "tokenizer.chat_template"}) {
    const std::string file = SmallGguf().U32(key, 1).File();
    const auto parsed = ParseGguf(file, "file");
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_THAT(std::string(GgufVocabulary(*parsed).status().message()), HasSubstr(key));
  }
}

TEST(HostileTest, DamagedArtifactsNeverVerify) {
  TempDir dir;
  std::filesystem::create_directory(dir.File("source"));
  WriteTinySource(dir.File("source"));
  const std::string artifact = dir.File("artifact");
  std::filesystem::create_directory(artifact);
  ASSERT_TRUE(
      WriteTinyArtifact(PosixFileSystem(), artifact,
                        TinySpec(dir.File("source"),
                                 TinyModules(FindScheme("int4-g32-asym"), FindScheme("int8"))))
          .ok());
  for (const char* name : {"config.json", "nibble.json", "model.safetensors"}) {
    const std::string path = artifact + "/" + name;
    const std::string good = ReadFile(path);
    int rounds = 0;
    ForEachFlip(good, std::min(good.size(), size_t{6000}), [&](const std::string& damaged) {
      if (++rounds > 120 || damaged == good) return;
      WriteFile(path, damaged);
      const auto checkpoint = Checkpoint::Open(artifact);
      if (checkpoint.ok()) ReadAll(**checkpoint);
      const auto digest = VerifyArtifact(artifact);
      // A manifest whose recipe or lineage was changed is another artifact.
      if (std::string_view(name) == "nibble.json" && digest.ok()) return;
      EXPECT_FALSE(digest.ok()) << name << " round " << rounds;
    });
    WriteFile(path, good);
  }
  EXPECT_TRUE(VerifyArtifact(artifact).ok());
}

TEST(HostileTest, DeepJsonIsRefused) {
  TempDir dir;
  WriteTinySource(dir.path());
  const std::string deep = std::string(1 << 20, '[');
  WriteFile(dir.File("config.json"), R"({"model_type":)" + deep);
  EXPECT_FALSE(Checkpoint::Open(dir.path()).ok());
  WriteFile(dir.File("config.json"), "{}");
  WriteFile(dir.File("model.safetensors.index.json"), R"({"weight_map":)" + deep);
  EXPECT_FALSE(Checkpoint::Open(dir.path()).ok());
}

}  // namespace
}  // namespace nibble
