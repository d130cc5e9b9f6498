// SPDX-License-Identifier: Apache-2.0
// The forward pass against Hugging Face transformers: tests/data/models holds tiny random
// checkpoints and the logits that transformers gives for them (make_golden_models.py).
#include "engine/model/decoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "engine/artifact/checkpoint.h"
#include "engine/model/prefill_batch.h"
#include "tests/support/golden_model.h"
#include "tests/support/near.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int32_t kTokens = 40;
constexpr int32_t kVocab = 96;

std::vector<int32_t> Tokens() {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < kTokens; ++i) tokens.push_back((7 * i * i + 3 * i + 1) % kVocab);
  return tokens;
}

struct Variant {
  std::string family;
  std::string name;
};

std::vector<Variant> Variants() {
  std::vector<Variant> variants;
  for (const auto& family : fs::directory_iterator(GoldenModels())) {
    if (!family.is_directory()) continue;
    for (const auto& file : fs::directory_iterator(family)) {
      if (file.path().extension() == ".logits") {
        variants.push_back({family.path().filename(), file.path().stem()});
      }
    }
  }
  std::sort(variants.begin(), variants.end(), [](const Variant& a, const Variant& b) {
    return std::pair(a.family, a.name) < std::pair(b.family, b.name);
  });
  return variants;
}

std::vector<float> GoldenLogits(const Variant& variant) {
  std::ifstream file(GoldenModels() / variant.family / (variant.name + ".logits"),
                     std::ios::binary);
  std::vector<float> logits(static_cast<size_t>(kTokens * kVocab));
  file.read(reinterpret_cast<char*>(logits.data()),
            static_cast<std::streamsize>(logits.size() * sizeof(float)));
  EXPECT_TRUE(file.good());
  return logits;
}

// Runs the tokens in chunks of `chunk` rows and returns all logits.
std::vector<float> RunLogits(const std::string& directory, int32_t chunk, const char* kv_format) {
  auto backend = MakeCpuBackend({.threads = 2, .tier = ""});
  EXPECT_TRUE(backend.ok()) << backend.status();
  auto checkpoint = Checkpoint::Open(directory);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto config = ParseDecoderConfig((*checkpoint)->config());
  EXPECT_TRUE(config.ok()) << config.status();
  auto decoder = Decoder::Load(**backend, *config, **checkpoint,
                               {.mode = Mode::kExact,
                                .max_rows = kTokens,
                                .max_logit_rows = kTokens,
                                .max_context = kTokens});
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  KvPool pool;
  auto kv = (*backend)->AllocateKv((*decoder)->MakeKvSpec(*FindKvFormat(kv_format)),
                                   PrefillBatch::BlocksFor(kTokens), &pool);
  EXPECT_TRUE(kv.ok()) << kv.status();
  auto batch = PrefillBatch::Make(**backend, kTokens, 1, kTokens);
  EXPECT_TRUE(batch.ok()) << batch.status();
  const std::vector<int32_t> tokens = Tokens();
  std::vector<float> logits;
  for (int32_t start = 0; start < kTokens; start += chunk) {
    const int32_t count = std::min(chunk, kTokens - start);
    const PrefillBatch::Chunk part{
        std::span(tokens).subspan(static_cast<size_t>(start), static_cast<size_t>(count)), start,
        0};
    const float* out = (*decoder)->Forward((*batch)->Set(std::span(&part, 1), true), pool);
    EXPECT_TRUE((*backend)->Sync().ok());
    logits.insert(logits.end(), out, out + static_cast<ptrdiff_t>(count) * kVocab);
  }
  return logits;
}

class DecoderGolden : public ::testing::TestWithParam<Variant> {};

TEST_P(DecoderGolden, LogitsAgreeWithTransformers) {
  const GoldenModelDirectory directory(GetParam().family, GetParam().name);
  const std::vector<float> golden = GoldenLogits(GetParam());
  const std::vector<float> logits = RunLogits(directory.path(), kTokens, "f32");
  double scale = 0;
  for (const float value : golden) scale = std::max(scale, std::abs(static_cast<double>(value)));
  // f32 throughout on both sides, summed in another order: two layers of products no longer than 44
  // terms.
  for (size_t i = 0; i < golden.size(); ++i) {
    ASSERT_TRUE(testing::Near(logits[i], golden[i], 1e-5 * scale)) << "logit " << i;
  }
}

TEST_P(DecoderGolden, ChunkingDoesNotChangeABit) {
  const GoldenModelDirectory directory(GetParam().family, GetParam().name);
  for (const char* kv : {"f32", "bf16", "int8"}) {
    const std::vector<float> whole = RunLogits(directory.path(), kTokens, kv);
    EXPECT_EQ(whole, RunLogits(directory.path(), 1, kv)) << kv;
    EXPECT_EQ(whole, RunLogits(directory.path(), 7, kv)) << kv;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, DecoderGolden, ::testing::ValuesIn(Variants()),
                         [](const auto& param) {
                           return param.param.family + "_" + param.param.name;
                         });

}  // namespace
}  // namespace nibble
