// SPDX-License-Identifier: Apache-2.0
#include "engine/model/blockwise_forward.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <vector>

#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::TinyModel;
using testing::TinyModelOptions;

std::vector<std::vector<int32_t>> Sequences(int count, int length) {
  std::vector<std::vector<int32_t>> sequences(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    for (int t = 0; t < length; ++t) {
      sequences[static_cast<size_t>(i)].push_back((i + 3 * t * t) % 90);
    }
  }
  return sequences;
}

struct OneBlock {
  OneBlock() {
    TinyModel(dir.File("model"), {.layers = 1});
    source = *Checkpoint::Open(dir.File("model"));
    config = *ParseDecoderConfig(source->config());
    backend = *MakeCpuBackend({2, ""});
  }

  std::unique_ptr<BlockwiseForward> Make(std::vector<std::vector<int32_t>> sequences) {
    return *BlockwiseForward::Make(
        *backend, config, std::move(sequences),
        {.kv = FindKvFormat("bf16"), .context = 0, .keep_going = keep_going});
  }

  // The block's outputs, a row per token.
  std::vector<float> Outputs(std::vector<std::vector<int32_t>> sequences, bool spill = false) {
    auto forward = Make(std::move(sequences));
    auto stream = *ActivationStore::Make(forward->rows(), config.hidden, spill, dir.path());
    EXPECT_TRUE(forward->Embed(*source->Weight("model.embed_tokens"), *stream).ok());
    auto block = DecoderBlock::Prepare(*backend, config, 0, *source, Mode::kExact);
    EXPECT_TRUE(block.ok()) << block.status();
    EXPECT_TRUE(forward->Run(**block, *stream, nullptr, /*advance=*/true).ok());
    std::vector<float> rows(static_cast<size_t>(forward->rows() * config.hidden));
    EXPECT_TRUE(stream->Read(0, forward->rows(), rows.data()).ok());
    return rows;
  }

  TempDir dir;
  std::unique_ptr<Checkpoint> source;
  DecoderConfig config;
  std::unique_ptr<Backend> backend;
  std::function<absl::Status()> keep_going;
};

TEST(BlockwiseForward, ALongSequenceInSeveralStepsGivesTheBitsOfAShortOne) {
  // Attention is causal, so the first 1000 tokens of 1500 give what they give alone.
  OneBlock model;
  const std::vector<float> whole = model.Outputs(Sequences(1, 1500));
  const std::vector<float> part = model.Outputs(Sequences(1, 1000));
  EXPECT_EQ(whole.size(), 1500u * 64);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin()));
}

TEST(BlockwiseForward, SequencesDoNotSeeEachOther) {
  OneBlock model;
  const auto sequences = Sequences(100, 30);  // several steps
  const std::vector<float> whole = model.Outputs(sequences);
  for (const int i : {0, 3, 33, 34, 64, 99}) {
    const std::vector<float> part = model.Outputs({sequences[static_cast<size_t>(i)]});
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + i * 30 * 64)) << i;
  }
}

TEST(BlockwiseForward, SpilledActivationsGiveTheSameBits) {
  OneBlock model;
  EXPECT_EQ(model.Outputs(Sequences(5, 30), false), model.Outputs(Sequences(5, 30), true));
}

TEST(BlockwiseForward, StopsWhenItIsTold) {
  OneBlock model;
  model.keep_going = [] { return absl::CancelledError("stop"); };
  auto forward = model.Make(Sequences(1, 8));
  auto stream = *ActivationStore::Make(8, model.config.hidden, false, "");
  auto block = DecoderBlock::Prepare(*model.backend, model.config, 0, *model.source, Mode::kExact);
  ASSERT_TRUE(block.ok());
  EXPECT_EQ(forward->Embed(*model.source->Weight("model.embed_tokens"), *stream).code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(forward->Run(**block, *stream, nullptr, true).code(), absl::StatusCode::kCancelled);
}

TEST(BlockwiseForward, RefusesAnEmbeddingOfAnotherShape) {
  OneBlock model;
  auto forward = model.Make(Sequences(1, 8));
  auto stream = *ActivationStore::Make(8, model.config.hidden, false, "");
  WeightView table = *model.source->Weight("model.embed_tokens");
  table.rows -= 7;
  const absl::Status status = forward->Embed(table, *stream);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("[89, 64]; config.json calls for [96, 64]"));
}

TEST(ActivationStore, KeepsRowsInMemoryAndInAFileThatHasNoName) {
  TempDir dir;
  for (const bool spill : {false, true}) {
    auto store = ActivationStore::Make(10, 3, spill, dir.path());
    ASSERT_TRUE(store.ok()) << store.status();
    EXPECT_EQ((*store)->spilled(), spill);
    const std::vector<float> rows = {1, 2, 3, 4, 5, 6};
    ASSERT_TRUE((*store)->Write(4, 2, rows.data()).ok());
    std::vector<float> back(12);
    ASSERT_TRUE((*store)->Read(3, 4, back.data()).ok());
    EXPECT_EQ(back, (std::vector<float>{0, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0}));
    EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
  }
  EXPECT_FALSE(ActivationStore::Make(10, 3, true, dir.File("nowhere")).ok());
}

}  // namespace
}  // namespace nibble
