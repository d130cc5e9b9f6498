// SPDX-License-Identifier: Apache-2.0
// The engine on the CUDA backend: batches, chunks, preemption. Products are chosen by the number of
// tokens, so that only the same steps give the same bits; batch-invariant ones are not.
#include <gtest/gtest.h>

#include "engine/serve/engine.h"
#include "tests/engine/serve/reader.h"
#include "tests/support/counting_backend.h"
#include "tests/support/cuda/emulated_backend.h"
#include "tests/support/cuda/emulated_device.h"
#include "tests/support/fake_weights.h"

namespace nibble {
namespace {

using testing::FakeWeights;
using testing::MakeEmulatedBackend;
using testing::Reader;
using testing::TinyConfig;

struct Setting {
  int32_t kv_blocks = 32;
  int32_t chunk = 0;
  bool alone = false;
  bool batch_invariant = false;
  bool replays = true;  // otherwise every launch of every step anew, and one step at a time
};

std::vector<GenerationRequest> Requests() {
  std::vector<GenerationRequest> requests(4);
  const size_t lengths[] = {60, 62, 3, 17};
  for (size_t i = 0; i < requests.size(); ++i) {
    for (size_t k = 0; k < lengths[i]; ++k) {
      requests[i].prompt.push_back(static_cast<int32_t>((7 * i + 13 * k + k * k) % 160));
    }
    SamplingParams& sampling = requests[i].sampling;
    sampling.seed = i;
    sampling.max_tokens = 10;
    sampling.ignore_eos = true;
    sampling.logprobs = 2;
    sampling.temperature = i % 2 == 0 ? 0.0f : 0.9f;
    if (i == 1) sampling.top_p = 0.9f;
    if (i == 2) sampling.prompt_logprobs = 1;
    if (i == 3) {
      sampling.repetition_penalty = 1.3f;
      sampling.n = 2;
    }
  }
  return requests;
}

// Greedy and drawn texts that end one by one, the first last, so that steps of many sizes come
// again, padded and not.
std::vector<GenerationRequest> ManyRequests() {
  std::vector<GenerationRequest> requests(12);
  for (int32_t i = 0; i < 12; ++i) {
    GenerationRequest& request = requests[static_cast<size_t>(i)];
    for (int32_t k = 0; k < 1 + i * 5; ++k) request.prompt.push_back((7 * i + 13 * k) % 160);
    SamplingParams& sampling = request.sampling;
    sampling.seed = static_cast<uint64_t>(i);
    sampling.max_tokens = 16 - i;
    sampling.ignore_eos = true;
    sampling.logprobs = 1;
    sampling.temperature = i % 2 == 0 ? 0.0f : 0.9f;
    if (i % 3 == 0) sampling.repetition_penalty = 1.4f;
    if (i % 4 == 0) sampling.frequency_penalty = 0.7f;
  }
  return requests;
}

struct Output {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<float> logprobs;
  uint64_t preemptions = 0;
};

Output Serve(const char* scheme, const Setting& setting,
             const std::vector<GenerationRequest>& requests = Requests()) {
  Output output;
  const DecoderConfig config = TinyConfig();
  const FakeWeights weights(config, *FindScheme(scheme));
  DecoderRunnerOptions options;
  options.kv_format = FindKvFormat("int8");
  options.max_sequences = static_cast<int32_t>(requests.size()) + 4;
  options.token_budget = 128;
  const KvSpec spec{options.kv_format, config.layers, config.kv_heads, config.head_dim};
  options.kv_bytes = spec.BytesPerBlock() * setting.kv_blocks;
  std::unique_ptr<Backend> device =
      MakeEmulatedBackend({.batch_invariant = setting.batch_invariant}).value();
  std::unique_ptr<Backend> hidden;  // behind a backend that hides what it can do by itself
  if (!setting.replays) {
    hidden = std::move(device);
    device = std::make_unique<testing::CountingBackend>(*hidden);
  }
  auto runner = DecoderRunner::Load(std::move(device), config, weights, options);
  EXPECT_TRUE(runner.ok()) << runner.status();
  EXPECT_EQ((*runner)->limits().ahead, setting.replays);
  const Backend& backend = (*runner)->decoder().backend();
  const auto memory_left = backend.MemoryLeft();
  EngineOptions engine_options;
  engine_options.prefill_chunk = setting.chunk;
  const auto engine = Engine::Make(*std::move(runner), nullptr, engine_options, nullptr).value();
  std::vector<std::unique_ptr<Reader>> readers;
  for (const GenerationRequest& request : requests) {
    readers.push_back(std::make_unique<Reader>(1000));
    EXPECT_TRUE(engine->Submit(request, readers.back()->stream).ok());
    while (setting.alone && engine->Step()) {
    }
  }
  while (engine->Step()) {
  }
  EXPECT_EQ(backend.MemoryLeft(), memory_left) << "a step allocated";
  for (size_t i = 0; i < readers.size(); ++i) {
    EXPECT_TRUE(readers[i]->Read());
    EXPECT_TRUE(readers[i]->end->status.ok()) << readers[i]->end->status;
    for (int32_t choice = 0; choice < requests[i].sampling.n; ++choice) {
      output.tokens.push_back(readers[i]->choice(choice).tokens);
      for (const TokenLogprob& entry : readers[i]->choice(choice).logprobs) {
        output.logprobs.push_back(entry.logprob);
      }
    }
  }
  EXPECT_EQ(engine->Stats().kv_blocks_used, 0);
  EXPECT_EQ(engine->Stats().device_seconds > 0, setting.replays);
  output.preemptions = engine->Stats().preemptions;
  return output;
}

class CudaServing : public ::testing::TestWithParam<const char*> {};

TEST_P(CudaServing, TheSameStepsGiveTheSameBitsAndNothingLeaks) {
  for (const Setting& setting : {Setting{}, Setting{.chunk = 16}, Setting{.kv_blocks = 3}}) {
    const Output output = Serve(GetParam(), setting);
    ASSERT_EQ(output.tokens.size(), 5u);
    for (const auto& tokens : output.tokens) EXPECT_EQ(tokens.size(), 10u);
    if (setting.kv_blocks == 3) {
      EXPECT_GT(output.preemptions, 0u);
    }
    const Output again = Serve(GetParam(), setting);
    EXPECT_EQ(again.tokens, output.tokens);
    EXPECT_EQ(again.logprobs, output.logprobs);
  }
}

// The library's products have another order of sums for another number of rows here.
class CudaServingBatchInvariant : public CudaServing {};

TEST_P(CudaServingBatchInvariant, OutputDependsOnNothingButTheRequest) {
  testing::EmulatedDevice().order_by_rows = true;
  const Output alone = Serve(GetParam(), {.alone = true, .batch_invariant = true});
  ASSERT_EQ(alone.tokens.size(), 5u);
  for (const Setting& setting :
       {Setting{.batch_invariant = true}, Setting{.chunk = 16, .batch_invariant = true},
        Setting{.kv_blocks = 3, .batch_invariant = true}}) {
    const Output output = Serve(GetParam(), setting);
    EXPECT_EQ(output.tokens, alone.tokens) << setting.kv_blocks << " blocks, " << setting.chunk;
    EXPECT_EQ(output.logprobs, alone.logprobs) << setting.kv_blocks << " blocks, " << setting.chunk;
  }
  testing::EmulatedDevice() = {};
}

INSTANTIATE_TEST_SUITE_P(Schemes, CudaServingBatchInvariant, ::testing::Values("bf16", "int4-g32"),
                         [](const auto& test) { return std::string(test.param).substr(0, 4); });

TEST(CudaServingByDefault, LogitsDependOnTheBatch) {
  testing::EmulatedDevice().order_by_rows = true;
  EXPECT_NE(Serve("bf16", {.alone = true}).logprobs, Serve("bf16", {}).logprobs);
  testing::EmulatedDevice() = {};
}

TEST_P(CudaServing, ReplayedStepsThatRunAheadGiveTheSameBitsAsOthers) {
  const Output replayed = Serve(GetParam(), {}, ManyRequests());
  const Output launched = Serve(GetParam(), {.replays = false}, ManyRequests());
  EXPECT_EQ(replayed.tokens, launched.tokens);
  EXPECT_EQ(replayed.logprobs, launched.logprobs);
}

INSTANTIATE_TEST_SUITE_P(Schemes, CudaServing, ::testing::Values("int4-g32", "w8a8"),
                         [](const auto& test) { return std::string(test.param).substr(0, 4); });

}  // namespace
}  // namespace nibble
