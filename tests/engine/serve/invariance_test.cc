// SPDX-License-Identifier: Apache-2.0
// On the CPU, what a request gets is independent of its neighbours, of chunking, of preemption and
// of the number of threads: tokens and log-probabilities are compared bit by bit.
#include <gtest/gtest.h>

#include "engine/serve/engine.h"
#include "tests/engine/serve/reader.h"
#include "tests/support/fake_weights.h"

namespace nibble {
namespace {

using nibble::testing::FakeWeights;
using nibble::testing::Reader;
using nibble::testing::TinyConfig;

struct Case {
  const char* name;
  const char* scheme;
  const char* kv;
  Mode mode;
};

struct Setting {
  bool alone = false;
  int32_t kv_blocks = 0;  // 0 = enough for all
  int32_t chunk = 0;
  int threads = 1;
};

struct Result {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<std::vector<float>> logprobs;
  std::vector<std::vector<float>> prompt_logprobs;
  uint64_t preemptions = 0;

  bool SameOutput(const Result& other) const {
    return tokens == other.tokens && logprobs == other.logprobs &&
           prompt_logprobs == other.prompt_logprobs;
  }
};

std::vector<float> Values(const std::vector<TokenLogprob>& entries) {
  std::vector<float> values;
  for (const TokenLogprob& entry : entries) {
    values.push_back(entry.logprob);
    for (const TopLogprob& top : entry.top) values.push_back(top.logprob);
  }
  return values;
}

// Sixteen requests of many kinds.
std::vector<GenerationRequest> Requests() {
  std::vector<GenerationRequest> requests(16);
  for (size_t i = 0; i < requests.size(); ++i) {
    GenerationRequest& request = requests[i];
    for (size_t k = 0; k < 1 + (i * 37) % 150; ++k) {
      request.prompt.push_back(static_cast<int32_t>((7 * i + 13 * k + k * k) % 160));
    }
    SamplingParams& sampling = request.sampling;
    sampling.seed = i;
    sampling.max_tokens = 70;
    sampling.logprobs = 2;
    sampling.temperature = i % 4 == 0 ? 0.0f : 0.9f;
    if (i % 3 == 1) sampling.top_p = 0.9f;
    if (i % 3 == 2) sampling.top_k = 20;
    if (i % 5 == 1) sampling.repetition_penalty = 1.3f;
    if (i % 5 == 2) sampling.frequency_penalty = 0.5f;
    if (i % 7 == 3) sampling.prompt_logprobs = 1;
    if (i % 6 == 5) sampling.n = 3;
  }
  return requests;
}

Result Serve(const Case& test, const Setting& setting) {
  Result result;
  auto backend = MakeCpuBackend({.threads = setting.threads, .tier = ""});
  EXPECT_TRUE(backend.ok()) << backend.status();
  const DecoderConfig config = TinyConfig();
  const FakeWeights weights(config, *FindScheme(test.scheme));
  DecoderRunnerOptions options;
  options.mode = test.mode;
  options.kv_format = FindKvFormat(test.kv);
  options.max_sequences = 16;
  options.token_budget = 256;
  const KvSpec spec{options.kv_format, config.layers, config.kv_heads, config.head_dim};
  options.kv_bytes = spec.BytesPerBlock() * (setting.kv_blocks == 0 ? 128 : setting.kv_blocks);
  auto runner = DecoderRunner::Load(*std::move(backend), config, weights, options);
  EXPECT_TRUE(runner.ok()) << runner.status();
  if (!runner.ok()) return result;
  EngineOptions engine_options;
  engine_options.prefill_chunk = setting.chunk;
  auto engine = Engine::Make(*std::move(runner), nullptr, engine_options, nullptr);
  EXPECT_TRUE(engine.ok()) << engine.status();
  std::vector<std::unique_ptr<Reader>> readers;
  for (GenerationRequest& request : Requests()) {
    readers.push_back(std::make_unique<Reader>(1000));
    const auto handle = (*engine)->Submit(std::move(request), readers.back()->stream);
    EXPECT_TRUE(handle.ok()) << handle.status();
    while (setting.alone && (*engine)->Step()) {
    }
  }
  while ((*engine)->Step()) {
  }
  const std::vector<GenerationRequest> requests = Requests();
  for (size_t i = 0; i < readers.size(); ++i) {
    EXPECT_TRUE(readers[i]->Read());
    EXPECT_TRUE(readers[i]->end->status.ok()) << readers[i]->end->status;
    result.prompt_logprobs.push_back(Values(readers[i]->prompt->prompt_logprobs));
    for (int32_t choice = 0; choice < requests[i].sampling.n; ++choice) {
      result.tokens.push_back(readers[i]->choice(choice).tokens);
      result.logprobs.push_back(Values(readers[i]->choice(choice).logprobs));
    }
  }
  EXPECT_EQ((*engine)->Stats().kv_blocks_used, 0);
  result.preemptions = (*engine)->Stats().preemptions;
  return result;
}

class Invariance : public ::testing::TestWithParam<Case> {};

TEST_P(Invariance, OutputDependsOnNothingButTheRequest) {
  const Result alone = Serve(GetParam(), {.alone = true});
  for (const std::vector<int32_t>& tokens : alone.tokens) EXPECT_EQ(tokens.size(), 70u);
  EXPECT_TRUE(Serve(GetParam(), {}).SameOutput(alone)) << "mixed with fifteen others";
  EXPECT_TRUE(Serve(GetParam(), {.chunk = 16}).SameOutput(alone)) << "chunks of 16";
  EXPECT_TRUE(Serve(GetParam(), {.threads = 2}).SameOutput(alone)) << "two threads";
  const Result preempted = Serve(GetParam(), {.kv_blocks = 7, .chunk = 50});
  EXPECT_GT(preempted.preemptions, 0u);
  EXPECT_TRUE(preempted.SameOutput(alone)) << "a pool of seven blocks";
}

INSTANTIATE_TEST_SUITE_P(All, Invariance,
                         ::testing::Values(Case{"F32Exact", "f32", "f32", Mode::kExact},
                                           Case{"BF16FastKvBf16", "bf16", "bf16", Mode::kFast},
                                           Case{"Int4FastKvBf16", "int4-g32", "bf16", Mode::kFast},
                                           Case{"W8A8KvInt8", "w8a8", "int8", Mode::kFast}),
                         [](const auto& test) { return std::string(test.param.name); });

std::vector<Case> EveryKvFormat() {
  std::vector<Case> cases;
  for (const KvFormat& format : kKvFormats) {
    cases.push_back({format.name, "int8", format.name, Mode::kFast});
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(KvFormats, Invariance, ::testing::ValuesIn(EveryKvFormat()),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace nibble
