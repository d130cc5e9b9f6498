// SPDX-License-Identifier: Apache-2.0
// What a format of the KV cache costs on a real model. docs/performance.md has the figures of a
// longer text.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/artifact/checkpoint.h"
#include "engine/eval/documents.h"
#include "engine/eval/evaluate.h"
#include "tests/support/source_dir.h"

namespace nibble {
namespace {

constexpr int32_t kContext = 512;

std::unique_ptr<Decoder> LoadDemoModel(Backend& backend, const Checkpoint& checkpoint) {
  auto config = ParseDecoderConfig(checkpoint.config());
  EXPECT_TRUE(config.ok()) << config.status();
  auto decoder = Decoder::Load(
      backend, *config, checkpoint,
      {.mode = Mode::kExact, .max_rows = 128, .max_logit_rows = 128, .max_context = kContext});
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  return *std::move(decoder);
}

TEST(KvQuality, FewerBitsCostMoreAndNoneCostMuch) {
  const std::string demo = (SourceDir() / "deploy/demo-model/").string();
  auto tokenizer = Tokenizer::FromDirectory(demo + "model");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  auto documents = ReadDocuments(demo + "heldout.jsonl", **tokenizer);
  ASSERT_TRUE(documents.ok()) << documents.status();
  auto checkpoint = Checkpoint::Open(demo + "model");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto backend = MakeCpuBackend({.threads = 0, .tier = ""});
  ASSERT_TRUE(backend.ok()) << backend.status();
  const auto model = LoadDemoModel(**backend, **checkpoint);
  const auto reference = LoadDemoModel(**backend, **checkpoint);

  EvaluateOptions options;
  options.max_tokens = kContext;
  options.max_predictions = 1000;
  std::map<std::string, double> kl;
  for (const KvFormat& format : kKvFormats) {
    const auto result = Evaluate(*model, reference.get(), *documents, format, options);
    ASSERT_TRUE(result.ok()) << format.name << ": " << result.status();
    kl[format.name] = result->kl();
    RecordProperty(format.name, std::to_string(result->kl()));
  }
  // The reference's cache is f32 where the model's is, otherwise bf16.
  EXPECT_EQ(kl["f32"], 0.0);
  EXPECT_EQ(kl["bf16"], 0.0);
  EXPECT_GT(kl["int8"], 0.0);
  EXPECT_LT(kl["int8"], kl["fp8"]);
  EXPECT_LT(kl["int8"], kl["k8v4"]);
  EXPECT_LT(kl["fp8"], kl["int4"]);
  EXPECT_LT(kl["k8v4"], kl["int4"]);
  EXPECT_LT(kl["int8"], 1e-3) << "the bound for a quantized cache in comparisons between devices";
  EXPECT_LT(kl["int4"], 0.05);
}

}  // namespace
}  // namespace nibble
