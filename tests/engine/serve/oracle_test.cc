// SPDX-License-Identifier: Apache-2.0
// A real model, served: the greedy continuations that llama2.c wrote, and independence of the
// batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "engine/artifact/checkpoint.h"
#include "engine/serve/engine.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/engine/serve/reader.h"
#include "tests/support/shared_data.h"

namespace nibble {
namespace {

using nibble::testing::Reader;

// The blocks between ``` lines.
std::vector<std::string> CodeBlocks(const std::string& file) {
  std::ifstream in(file);
  std::vector<std::string> blocks;
  bool inside = false;
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("```")) {
      inside = !inside;
      if (inside) blocks.emplace_back();
    } else if (inside) {
      blocks.back() += (blocks.back().empty() ? "" : "\n") + line;
    }
  }
  return blocks;
}

class ServedStories : public ::testing::Test {
 protected:
  void SetUp() override {
    if (SharedDataDirectory().empty()) GTEST_SKIP() << "needs ../shared/data";
    directory_ = SharedDataDirectory() + "/models/stories260K";
    auto tokenizer = Tokenizer::FromDirectory(directory_);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  std::unique_ptr<Engine> MakeEngine(int32_t kv_blocks) {
    auto backend = MakeCpuBackend({.threads = 1, .tier = ""});
    EXPECT_TRUE(backend.ok()) << backend.status();
    auto checkpoint = Checkpoint::Open(directory_);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    auto config = ParseDecoderConfig((*checkpoint)->config());
    EXPECT_TRUE(config.ok()) << config.status();
    DecoderRunnerOptions options;
    options.mode = Mode::kExact;
    options.kv_format = FindKvFormat("f32");
    options.token_budget = 128;
    const KvSpec spec{options.kv_format, config->layers, config->kv_heads, config->head_dim};
    options.kv_bytes = spec.BytesPerBlock() * kv_blocks;
    auto runner = DecoderRunner::Load(*std::move(backend), *config, **checkpoint, options);
    EXPECT_TRUE(runner.ok()) << runner.status();
    auto engine = Engine::Make(*std::move(runner), DecodeWith(tokenizer_), {}, nullptr);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }

  std::string directory_;
  std::shared_ptr<const Tokenizer> tokenizer_;
};

TEST_F(ServedStories, GreedyContinuationsAreTheOracles) {
  const std::vector<std::string> stories = CodeBlocks(directory_ + "/ORACLE.md");
  ASSERT_EQ(stories.size(), 3u);
  const auto engine = MakeEngine(64);
  std::vector<std::unique_ptr<Reader>> readers;
  std::vector<std::string> rests;
  for (const std::string& story : stories) {
    const std::string opening = story.substr(0, story.find('.') + 1);
    rests.push_back(story.substr(opening.size()));
    GenerationRequest request;
    request.prompt = tokenizer_->Encode(opening, {.add_bos = true});
    request.sampling.temperature = 0;
    request.sampling.max_tokens = 200;
    readers.push_back(std::make_unique<Reader>());
    const auto handle = engine->Submit(std::move(request), readers.back()->stream);
    ASSERT_TRUE(handle.ok()) << handle.status();
  }
  while (engine->Step()) {
  }
  for (size_t i = 0; i < readers.size(); ++i) {
    ASSERT_TRUE(readers[i]->Read());
    EXPECT_EQ(readers[i]->choice(0).text.substr(0, rests[i].size()), rests[i]);
  }
}

TEST_F(ServedStories, SixteenTogetherInATightPoolGiveWhatEachGivesAlone) {
  const auto run = [this](bool alone, int32_t kv_blocks) {
    const auto engine = MakeEngine(kv_blocks);
    std::vector<std::unique_ptr<Reader>> readers;
    for (uint64_t i = 0; i < 16; ++i) {
      GenerationRequest request;
      const std::string opening = "Once upon a time there was a cat named Tom. He ";
      request.prompt = tokenizer_->Encode(opening.substr(0, 12 + 2 * i), {.add_bos = true});
      request.sampling.max_tokens = 120;
      request.sampling.seed = i;
      request.sampling.logprobs = 0;
      request.sampling.ignore_eos = true;
      readers.push_back(std::make_unique<Reader>());
      EXPECT_TRUE(engine->Submit(std::move(request), readers.back()->stream).ok());
      while (alone && engine->Step()) {
      }
    }
    while (engine->Step()) {
    }
    std::vector<std::pair<std::string, std::vector<float>>> outputs;
    for (auto& reader : readers) {
      EXPECT_TRUE(reader->Read());
      std::vector<float> logprobs;
      for (const auto& entry : reader->choice(0).logprobs) logprobs.push_back(entry.logprob);
      outputs.emplace_back(reader->choice(0).text, logprobs);
    }
    EXPECT_EQ(engine->Stats().preemptions > 0, kv_blocks < 16);
    return outputs;
  };
  EXPECT_EQ(run(false, 10), run(true, 64));
}

}  // namespace
}  // namespace nibble
