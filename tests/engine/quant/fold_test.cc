// SPDX-License-Identifier: Apache-2.0
// Folding, and the statistics that the factors come from.
#include "engine/quant/fold.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "engine/artifact/checkpoint.h"
#include "engine/model/activation_store.h"
#include "engine/model/blockwise_forward.h"
#include "engine/model/config.h"
#include "engine/quant/block_quantizer.h"
#include "engine/quant/overlay_source.h"
#include "engine/quant/statistics.h"
#include "tests/engine/quant/random_matrix.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace {

using testing::TinyModel;
using testing::TinyModelOptions;

// A tiny model, opened, with samples and a stream of embeddings.
struct Fixture {
  Fixture(const TinyModelOptions& options, std::vector<std::vector<int32_t>> documents) {
    TinyModel(dir.File("model"), options);
    source = *Checkpoint::Open(dir.File("model"));
    config = *ParseDecoderConfig(source->config());
    backend = *MakeCpuBackend({2, ""});
    calibration =
        *BlockwiseForward::Make(*backend, config, std::move(documents),
                                {.kv = FindKvFormat("f32"), .context = 0, .keep_going = {}});
    stream = *ActivationStore::Make(calibration->rows(), config.hidden, false, dir.path());
    EXPECT_TRUE(calibration->Embed(*source->Weight("model.embed_tokens"), *stream).ok());
  }

  std::vector<float> Outputs(const WeightSource& weights) {
    auto block = DecoderBlock::Prepare(*backend, config, 0, weights, Mode::kExact);
    EXPECT_TRUE(block.ok()) << block.status();
    auto copy = *ActivationStore::Make(calibration->rows(), config.hidden, false, dir.path());
    std::vector<float> rows(static_cast<size_t>(calibration->rows() * config.hidden));
    EXPECT_TRUE(stream->Read(0, calibration->rows(), rows.data()).ok());
    EXPECT_TRUE(copy->Write(0, calibration->rows(), rows.data()).ok());
    EXPECT_TRUE(calibration->Run(**block, *copy, nullptr, /*advance=*/true).ok());
    EXPECT_TRUE(copy->Read(0, calibration->rows(), rows.data()).ok());
    return rows;
  }

  InputStatistics Observe(const WeightSource& weights, InputGroup group) {
    auto block = DecoderBlock::Prepare(*backend, config, 0, weights, Mode::kExact);
    EXPECT_TRUE(block.ok()) << block.status();
    StatisticsCollector::Wanted wanted{};
    wanted[static_cast<size_t>(group)] = {true, true};
    StatisticsCollector collector(*backend, wanted, calibration->rows(), 2);
    EXPECT_TRUE(calibration->Run(**block, *stream, &collector, /*advance=*/false).ok());
    absl::StatusOr<InputStatistics> result = collector.Take(group, "the group");
    EXPECT_TRUE(result.ok()) << result.status();
    return *std::move(result);
  }

  TempDir dir;
  std::unique_ptr<Checkpoint> source;
  DecoderConfig config;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<BlockwiseForward> calibration;
  std::unique_ptr<ActivationStore> stream;
};

std::vector<std::vector<int32_t>> Samples(int count, int length) {
  std::vector<std::vector<int32_t>> samples(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    for (int t = 0; t < length; ++t)
      samples[static_cast<size_t>(i)].push_back((i + 3 * t * t) % 90);
  }
  return samples;
}

const char* const kLinears[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                "mlp.down_proj"};

class Fold : public ::testing::TestWithParam<InputGroup> {};

TEST_P(Fold, LeavesTheBlocksFunctionAndScalesItsStatistics) {
  const InputGroup group = GetParam();
  Fixture fixture({.layers = 1, .bias = true}, Samples(4, 24));
  std::map<std::string, Matrix> weights;
  for (const char* name : kLinears) {
    weights[name] = *LoadWeight(*fixture.source, BlockModule(0, name), 1);
  }
  std::map<std::string, StoredVector> vectors;
  for (const char* name : {"input_layernorm.weight", "post_attention_layernorm.weight",
                           "self_attn.v_proj.bias", "mlp.up_proj.bias"}) {
    vectors[name] = {DType::kBF16, *fixture.source->Vector(BlockModule(0, name))};
  }
  const std::vector<float> before = fixture.Outputs(*fixture.source);
  InputStatistics input = fixture.Observe(*fixture.source, group);

  const std::optional<FoldTarget> target = FindFoldTarget(fixture.config, group);
  ASSERT_TRUE(target.has_value());
  std::vector<float> factors;
  for (size_t j = 0; j < input.mean_abs.size(); ++j) {
    factors.push_back(0.3f + 0.37f * static_cast<float>(j % 11));
  }
  FoldFactors(fixture.config, *target, group, factors, weights, vectors, input);

  OverlaySource folded(*fixture.source);
  for (const auto& [name, weight] : weights) {
    folded.SetWeight(BlockModule(0, name), {FindScheme("f32"), weight.rows, weight.cols,
                                            weight.values.data(), nullptr, nullptr});
  }
  for (const auto& [name, vector] : vectors) {
    folded.SetVector(BlockModule(0, name), vector.values);
    if (vector.dtype != DType::kBF16) continue;  // still what its type can hold
    for (const float value : vector.values) EXPECT_EQ(value, BF16ToF32(F32ToBF16(value)));
  }
  const std::vector<float> after = fixture.Outputs(folded);
  double moved = 0;
  double whole = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    moved += std::pow(static_cast<double>(after[i]) - static_cast<double>(before[i]), 2);
    whole += std::pow(static_cast<double>(before[i]), 2);
  }
  EXPECT_LT(std::sqrt(moved / whole), 1e-5);

  const InputStatistics seen = fixture.Observe(folded, group);
  EXPECT_NE(input.mean_abs[1], 0.0f);
  for (size_t j = 0; j < factors.size(); ++j) {
    EXPECT_NEAR(seen.mean_abs[j], input.mean_abs[j], 1e-4f * seen.mean_abs[j]);
    EXPECT_NEAR(seen.max_abs[j], input.max_abs[j], 1e-4f * seen.max_abs[j]);
    const auto k = static_cast<int64_t>(j);
    EXPECT_NEAR(seen.hessian.at(k, k), input.hessian.at(k, k), 1e-3f * seen.hessian.at(k, k));
    EXPECT_NEAR(seen.samples.at(5, k), input.samples.at(5, k),
                1e-4f * std::fabs(seen.samples.at(5, k)) + 1e-5f);
  }
}

INSTANTIATE_TEST_SUITE_P(Groups, Fold,
                         ::testing::Values(InputGroup::kQkv, InputGroup::kO, InputGroup::kGateUp,
                                           InputGroup::kDown));

TEST(FindFoldTarget, HasNoneForSharedValueHeads) {
  DecoderConfig config;
  config.heads = 8;
  config.kv_heads = 2;
  EXPECT_FALSE(FindFoldTarget(config, InputGroup::kO).has_value());
  EXPECT_TRUE(FindFoldTarget(config, InputGroup::kQkv).has_value());
}

TEST(StatisticsCollector, StatisticsAreThoseOfTheInputs) {
  Fixture fixture({.layers = 1}, Samples(3, 20));
  const InputStatistics s = fixture.Observe(*fixture.source, InputGroup::kQkv);
  ASSERT_EQ(s.samples.rows, 60);  // fewer tokens than samples are kept: all of them
  const Matrix expected = testing::HessianOf(s.samples);
  for (int64_t i = 0; i < 64; ++i) {
    double mean = 0;
    float most = 0;
    for (int64_t t = 0; t < 60; ++t) {
      mean += std::fabs(static_cast<double>(s.samples.at(t, i))) / 60;
      most = std::max(most, std::fabs(s.samples.at(t, i)));
    }
    EXPECT_NEAR(s.mean_abs[static_cast<size_t>(i)], mean, 1e-5 * mean);
    EXPECT_EQ(s.max_abs[static_cast<size_t>(i)], most);
    for (int64_t j = 0; j < 64; ++j) {
      EXPECT_NEAR(s.hessian.at(i, j), expected.at(i, j),
                  1e-4 * std::sqrt(static_cast<double>(expected.at(i, i)) *
                                   static_cast<double>(expected.at(j, j))));
      EXPECT_EQ(s.hessian.at(i, j), s.hessian.at(j, i));
    }
  }
}

TEST(StatisticsCollector, ActivationsThatAreNotFiniteAreNamed) {
  Fixture fixture({.layers = 1}, Samples(2, 8));
  std::vector<float> row(64, 1.0f);
  row[3] = INFINITY;
  ASSERT_TRUE(fixture.stream->Write(5, 1, row.data()).ok());
  auto block =
      DecoderBlock::Prepare(*fixture.backend, fixture.config, 0, *fixture.source, Mode::kExact);
  ASSERT_TRUE(block.ok());
  StatisticsCollector::Wanted wanted{};
  wanted[0] = {true, true};
  StatisticsCollector collector(*fixture.backend, wanted, 16, 1);
  ASSERT_TRUE(fixture.calibration->Run(**block, *fixture.stream, &collector, false).ok());
  const absl::StatusOr<InputStatistics> taken = collector.Take(InputGroup::kQkv, "layers.7.q_proj");
  EXPECT_EQ(taken.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(taken.status().message()), ::testing::HasSubstr("layers.7.q_proj"));
}

}  // namespace
}  // namespace nibble
