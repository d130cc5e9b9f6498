// SPDX-License-Identifier: Apache-2.0
// The forward pass on the CUDA backend beside the CPU in exact mode, teacher-forced.
#include <gtest/gtest.h>

#include <random>

#include "engine/artifact/checkpoint.h"
#include "engine/eval/documents.h"
#include "engine/eval/evaluate.h"
#include "engine/model/decoder.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/support/cuda/emulated_backend.h"
#include "tests/support/cuda/emulated_device.h"
#include "tests/support/fake_weights.h"
#include "tests/support/source_dir.h"

namespace nibble {
namespace {

using testing::FakeWeights;
using testing::MakeEmulatedBackend;
using testing::TinyConfig;

struct Case {
  const char* name;
  const char* scheme;
  const char* kv;
  Mode mode;
  double kl;  // nats per token, at most
};

std::vector<Document> RandomDocuments(int32_t vocab) {
  std::mt19937 random(5);
  std::vector<Document> documents;
  for (const size_t length : {2u, 17u, 70u}) {
    Document document(length);
    for (int32_t& id : document) id = static_cast<int32_t>(random() % static_cast<unsigned>(vocab));
    documents.push_back(document);
  }
  return documents;
}

std::unique_ptr<Decoder> Load(Backend& backend, const DecoderConfig& config,
                              const WeightSource& weights, Mode mode) {
  DecoderOptions options;
  options.mode = mode;
  options.max_rows = options.max_logit_rows = 70;
  auto decoder = Decoder::Load(backend, config, weights, options);
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  return decoder.ok() ? *std::move(decoder) : nullptr;
}

class CudaDecoder : public ::testing::TestWithParam<Case> {};

TEST_P(CudaDecoder, AgreesWithTheCpuInExactMode) {
  const DecoderConfig config = TinyConfig();
  const FakeWeights weights(config, *FindScheme(GetParam().scheme));
  const auto gpu = MakeEmulatedBackend().value();
  const auto cpu = MakeCpuBackend({.threads = 2, .tier = ""}).value();
  const auto model = Load(*gpu, config, weights, GetParam().mode);
  const auto reference = Load(*cpu, config, weights, Mode::kExact);
  ASSERT_TRUE(model != nullptr && reference != nullptr);
  const auto evaluation = Evaluate(*model, reference.get(), RandomDocuments(config.vocab),
                                   *FindKvFormat(GetParam().kv), {});
  ASSERT_TRUE(evaluation.ok()) << evaluation.status();
  EXPECT_EQ(evaluation->predictions(), 86);
  EXPECT_LT(evaluation->kl(), GetParam().kl);
  EXPECT_GT(evaluation->kl(), 0.0);
  EXPECT_GT(evaluation->same_top(), 0.85);
}

// Random weights forget nothing: every rounding to bf16 between the operations reaches the logits.
// A trained model's share is measured below.
INSTANTIATE_TEST_SUITE_P(
    All, CudaDecoder,
    ::testing::Values(Case{"BF16", "bf16", "bf16", Mode::kFast, 1e-3},
                      Case{"F32Exact", "f32", "f32", Mode::kExact, 1e-3},
                      Case{"Int4", "int4-g32", "bf16", Mode::kFast, 1e-3},
                      Case{"Int4Asym", "int4-g64-asym", "bf16", Mode::kFast, 1e-3},
                      Case{"Int4Exact", "int4-g32", "bf16", Mode::kExact, 1e-3},
                      Case{"Int8", "int8", "bf16", Mode::kFast, 1e-3},
                      Case{"Int3", "int3-g64", "bf16", Mode::kFast, 1e-3},
                      Case{"Nf4DoubleQuantized", "nf4-dq", "bf16", Mode::kFast, 1e-3},
                      Case{"W8A8", "w8a8", "bf16", Mode::kFast, 2e-3},
                      Case{"LlmInt8", "llm-int8", "bf16", Mode::kFast, 2e-3},
                      Case{"Fp8", "fp8", "bf16", Mode::kFast, 2e-3},
                      Case{"Fp8Exact", "fp8", "bf16", Mode::kExact, 2e-3},
                      Case{"KvInt8", "bf16", "int8", Mode::kFast, 2e-3}),
    [](const auto& test) { return std::string(test.param.name); });

class CudaDemoModel : public ::testing::TestWithParam<Case> {};

TEST_P(CudaDemoModel, AgreesWithTheCpuInExactMode) {
  const std::string directory = SourceDir().string() + "/deploy/demo-model/model";
  const auto checkpoint = Checkpoint::Open(directory).value();
  const DecoderConfig config = ParseDecoderConfig(checkpoint->config()).value();
  const auto tokenizer = Tokenizer::FromDirectory(directory).value();
  auto documents =
      ReadDocuments(SourceDir().string() + "/deploy/demo-model/heldout.jsonl", *tokenizer).value();
  documents.resize(1);
  documents[0].resize(70);
  const auto gpu = MakeEmulatedBackend().value();
  const auto cpu = MakeCpuBackend({.threads = 2, .tier = ""}).value();
  const auto model = Load(*gpu, config, *checkpoint, Mode::kFast);
  const auto reference = Load(*cpu, config, *checkpoint, Mode::kExact);
  ASSERT_TRUE(model != nullptr && reference != nullptr);
  const auto evaluation =
      Evaluate(*model, reference.get(), documents, *FindKvFormat(GetParam().kv), {});
  ASSERT_TRUE(evaluation.ok()) << evaluation.status();
  EXPECT_EQ(evaluation->predictions(), 69);
  EXPECT_LT(evaluation->kl(), GetParam().kl);
  EXPECT_GT(evaluation->same_top(), 0.95);
}

INSTANTIATE_TEST_SUITE_P(All, CudaDemoModel,
                         ::testing::Values(Case{"KvBF16", "bf16", "bf16", Mode::kFast, 1e-4},
                                           Case{"KvInt8", "bf16", "int8", Mode::kFast, 1e-3}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(CudaBackend, RunningOutOfMemoryIsResourceExhaustedAtLoad) {
  const DecoderConfig config = TinyConfig();
  const FakeWeights weights(config, *FindScheme("bf16"));
  testing::EmulatedDevice().memory_bytes = size_t{400} << 10;
  const auto gpu = MakeEmulatedBackend();
  if (gpu.ok()) {
    DecoderOptions options;
    const auto decoder = Decoder::Load(**gpu, config, weights, options);
    EXPECT_EQ(decoder.status().code(), absl::StatusCode::kResourceExhausted) << decoder.status();
  } else {
    EXPECT_EQ(gpu.status().code(), absl::StatusCode::kResourceExhausted) << gpu.status();
  }
  testing::EmulatedDevice() = {};
}

TEST(CudaBackend, AStepBeyondWhatWasReservedIsAnError) {
  const auto gpu = MakeEmulatedBackend().value();
  ASSERT_TRUE(gpu->Reserve({.sample_rows = 2, .vocabulary = 8}).ok());
  const auto logits = gpu->Allocate(2 * 8 * sizeof(float)).value();
  const auto results = gpu->Allocate(2 * sizeof(SampleResult)).value();
  std::vector<SamplingRow> params(2);
  const SampleArgs args{logits->as<float>(), 2, 8, params.data(), results->as<SampleResult>()};
  gpu->Sample(args);
  EXPECT_TRUE(gpu->Sync().ok());
  const std::vector<int32_t> banned(1000, 7);  // more than the vocabulary has
  params[0].banned_ids = banned.data();
  params[0].num_banned = 1000;
  gpu->Sample(args);
  EXPECT_EQ(gpu->Sync().code(), absl::StatusCode::kFailedPrecondition) << gpu->Sync();
}

// More keys than recordings are kept, memory that is freed in between, contents that change.
TEST(CudaBackend, ReplaysWhatMemoryHoldsThen) {
  const auto gpu = MakeEmulatedBackend().value();
  constexpr int kKeys = 70, kRows = 80;
  std::vector<float> values(kRows);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) + 0.5f;
  const WeightView view{FindScheme("f32"), kRows, 1, values.data()};
  const auto table = gpu->PrepareEmbedding(view).value();
  const auto ids = gpu->Allocate(kKeys * sizeof(int32_t)).value();
  const auto out = gpu->Allocate(kKeys * sizeof(float)).value();
  for (int32_t round = 0; round < 4; ++round) {
    std::vector<int32_t> wanted(kKeys);
    for (int32_t key = 0; key < kKeys; ++key) wanted[static_cast<size_t>(key)] = key + round;
    gpu->Upload(ids->data(), wanted.data(), wanted.size() * sizeof(int32_t));
    for (int32_t key = 0; key < kKeys; ++key) {
      // The first keys come more often, and so are replayed.
      for (int32_t again = key < 5 ? 3 : 1; again > 0; --again) {
        gpu->Replay(static_cast<uint64_t>(key), [&] {
          gpu->Embed({.table = table.get(),
                      .ids = ids->as<int32_t>() + key,
                      .rows = 1,
                      .scale = 1.0f,
                      .out = out->as<float>() + key});
        });
      }
    }
    if (round == 1) {
      ASSERT_TRUE(gpu->Prepare({{view}, {}}, Mode::kFast).ok());
      ASSERT_TRUE(gpu->Reserve({.sample_rows = 2, .vocabulary = 8}).ok());
    }
    std::vector<float> found(kKeys);
    gpu->Download(found.data(), out->data(), found.size() * sizeof(float));
    ASSERT_TRUE(gpu->Sync().ok());
    for (size_t key = 0; key < kKeys; ++key) {
      ASSERT_EQ(found[key], static_cast<float>(wanted[key]) + 0.5f) << "key " << key;
    }
  }
}

TEST(CudaBackend, LongListsOfSamplingParametersAreTakenInParts) {
  constexpr int64_t kRows = 5, kVocabulary = 300;
  std::vector<int32_t> every(kVocabulary), counts(kVocabulary);
  std::vector<float> logits(kRows * kVocabulary), bias(kVocabulary);
  std::mt19937 random(3);
  for (float& logit : logits) logit = static_cast<float>(random() % 1000) / 100;
  for (size_t i = 0; i < every.size(); ++i) {
    every[i] = static_cast<int32_t>(i);
    counts[i] = static_cast<int32_t>(random() % 5);
    bias[i] = static_cast<float>(random() % 100) / 50;
  }
  std::vector<SamplingRow> params(kRows);
  for (SamplingRow& row : params) {
    row.temperature = 0;
    row.presence_penalty = row.frequency_penalty = 0.5f;
    row.bias_ids = row.seen_ids = every.data();
    row.bias = bias.data();
    row.output_counts = counts.data();
    row.num_bias = row.num_seen = kVocabulary;
  }
  const auto gpu = MakeEmulatedBackend().value();
  const auto cpu = MakeCpuBackend({.threads = 1, .tier = ""}).value();
  ASSERT_TRUE(gpu->Reserve({.sample_rows = kRows, .vocabulary = kVocabulary}).ok());
  const size_t left = gpu->MemoryLeft().value();
  const auto device_logits = gpu->Allocate(logits.size() * sizeof(float)).value();
  gpu->Upload(device_logits->data(), logits.data(), logits.size() * sizeof(float));
  std::vector<SampleResult> results(kRows), expected(kRows);
  gpu->Sample({device_logits->as<float>(), kRows, kVocabulary, params.data(), results.data()});
  EXPECT_TRUE(gpu->Sync().ok());
  EXPECT_EQ(gpu->MemoryLeft().value(), left - logits.size() * sizeof(float));
  cpu->Sample({logits.data(), kRows, kVocabulary, params.data(), expected.data()});
  for (size_t i = 0; i < kRows; ++i) EXPECT_EQ(results[i].token, expected[i].token) << i;
}

TEST(CudaBackend, AVocabularyThatCannotBeDrawnFromIsRefused) {
  const auto gpu = MakeEmulatedBackend().value();
  EXPECT_TRUE(gpu->Reserve({.vocabulary = 1 << 21}).ok()) << "nothing is drawn";
  const absl::Status refused = gpu->Reserve({.sample_rows = 1, .vocabulary = (1 << 20) + 1});
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(std::string(refused.message()).find("1048577"), std::string::npos) << refused;
}

TEST(CudaBackend, SaysWhatAttentionDoesNotTake) {
  const auto gpu = MakeEmulatedBackend().value();
  KvSpec spec{FindKvFormat("bf16"), 1, 1, 20};
  KvPool pool;
  const auto memory = gpu->AllocateKv(spec, 1, &pool);
  EXPECT_EQ(memory.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(std::string(memory.status().message()).find("heads of 20"), std::string::npos);
}

}  // namespace
}  // namespace nibble
