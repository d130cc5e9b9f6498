// SPDX-License-Identifier: Apache-2.0
// Attention against softmax in double precision over the stored keys and values, and the bits that
// must not depend on the batch, the chunks, the blocks or the order of threads.
#include "kernels/cuda/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <tuple>

#include "tests/kernels/cuda/paged_kv.h"
#include "tests/support/cuda/simt_emulator.h"
#include "tests/support/near.h"

namespace nibble::testing {
namespace {

struct Shape {
  int32_t heads, kv_heads, head_dim, window;
  float softcap;
};
constexpr Shape kShapes[] = {
    {2, 1, 8, 0, 0.0f},       // stories260K has heads of 8
    {6, 2, 24, 5, 0.0f},      // a window inside a tile
    {4, 4, 64, 0, 0.0f},      //
    {5, 1, 80, 70, 20.0f},    // a tail group of int4, a window longer than a tile, capped scores
    {16, 2, 128, 0, 0.0f},    //
    {20, 1, 128, 600, 0.0f},  // more query heads than rows of a product, a window over two runs
    {1, 1, 256, 0, 0.0f},     // the largest
};

// Lengths around tiles (64) and runs (512); one token is the split way, more are not.
const std::vector<TestSequence> kMixed = {{1, 1},   {63, 1},  {64, 1},  {65, 1}, {0, 0},
                                          {520, 1}, {70, 70}, {530, 5}, {3, 2}};

class Attention {
 public:
  Attention(const KvFormat& format, const Shape& of, const std::vector<int32_t>& lengths,
            uint32_t block_order = 1)
      : shape(of), kv(format, of.kv_heads, of.head_dim, lengths, block_order) {
    std::vector<TestSequence> all;
    for (const int32_t length : lengths) all.push_back({length, length});
    int64_t tokens = 0;
    for (const int32_t length : lengths) tokens += length;
    const int64_t width = int64_t{shape.kv_heads} * shape.head_dim;
    kv.Append(all, RandomFloats(tokens * width, 1), RandomFloats(tokens * width, 2));
    // Queries by sequence and position, so that every cut of a sequence has the same.
    for (size_t s = 0; s < lengths.size(); ++s) {
      queries.push_back(ToBF16(RandomFloats(int64_t{lengths[s]} * shape.heads * shape.head_dim,
                                            10 + static_cast<uint32_t>(s))));
    }
  }

  // Output rows in f32; `formats` of the output in `outputs` if given.
  std::vector<float> Run(const std::vector<TestSequence>& sequences,
                         std::span<const ActFormat> formats = kPlain,
                         std::unique_ptr<ActsOnDevice>* outputs = nullptr,
                         const AttentionTuning& tuning = {}) {
    const int64_t width = int64_t{shape.heads} * shape.head_dim;
    std::vector<uint16_t> rows;
    for (size_t s = 0; s < sequences.size(); ++s) {
      const auto [context, tokens] = sequences[s];
      rows.insert(rows.end(), queries[s].begin() + (context - tokens) * width,
                  queries[s].begin() + context * width);
    }
    const BatchOnDevice batch(sequences, kv.table());
    const OnDevice<uint16_t> q(rows);
    const auto partials = OnDevice<uint8_t>::Poisoned(AttentionPartialBytes(
        batch.view().sequences, batch.view().max_blocks, shape.heads, shape.head_dim));
    const auto scratch = OnDevice<float>::Poisoned(rows.size());
    auto out = std::make_unique<ActsOnDevice>(formats, batch.view().rows, width);
    AttentionArgs args{};
    args.batch = &batch.view();
    args.q = {q.data(), DType::kBF16};
    args.heads = shape.heads;
    args.scale = Scale();
    args.window = shape.window;
    args.softcap = shape.softcap;
    args.kv = &kv.pool();
    args.layer = PagedKv::kLayer;
    args.out = out->set();
    LaunchAttention(TestDevice(), args, {reinterpret_cast<float*>(partials.data()), scratch.data()},
                    tuning);
    auto result = As<float>(out->Data(0));
    if (outputs != nullptr) *outputs = std::move(out);
    return result;
  }

  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.head_dim)); }

  // The row of one query token; `largest` becomes the largest |value| that it sees.
  std::vector<double> Reference(size_t sequence, int32_t position, double* largest) const {
    const auto dim = static_cast<size_t>(shape.head_dim);
    const int32_t oldest = shape.window > 0 ? std::max(0, position - shape.window + 1) : 0;
    std::vector<double> row;
    for (int32_t h = 0; h < shape.heads; ++h) {
      const int32_t kv_head = h * shape.kv_heads / shape.heads;
      const uint16_t* q =
          queries[sequence].data() + (static_cast<size_t>(position * shape.heads + h)) * dim;
      std::vector<double> scores, y(dim);
      for (int32_t t = oldest; t <= position; ++t) {
        const auto& key = Entry(true, sequence, t, kv_head);
        double sum = 0;
        for (size_t d = 0; d < dim; ++d) sum += double{BF16ToF32(q[d])} * key[d];
        sum *= Scale();
        if (shape.softcap > 0) sum = shape.softcap * std::tanh(sum / shape.softcap);
        scores.push_back(sum);
      }
      const double top = *std::max_element(scores.begin(), scores.end());
      double total = 0;
      for (int32_t t = oldest; t <= position; ++t) {
        const double weight = std::exp(scores[static_cast<size_t>(t - oldest)] - top);
        const auto& value = Entry(false, sequence, t, kv_head);
        total += weight;
        for (size_t d = 0; d < dim; ++d) {
          y[d] += weight * value[d];
          *largest = std::max(*largest, std::abs(value[d]));
        }
      }
      for (const double sum : y) row.push_back(sum / total);
    }
    return row;
  }

  const Shape shape;
  PagedKv kv;
  std::vector<std::vector<uint16_t>> queries;
  static constexpr ActFormat kPlain[] = {{DType::kF32, 0}};

 private:
  // f32 pages are read as bf16.
  const std::vector<double>& Entry(bool key, size_t sequence, int32_t token, int32_t head) const {
    auto& entry = entries_[{key, sequence, token, head}];
    if (entry.empty()) {
      entry = kv.Entry(key, sequence, token, head);
      const KvFormat& format = *kv.pool().spec.format;
      if ((key ? format.k : format.v) == KvCode::kF32) {
        for (double& x : entry) x = RoundToBF16(static_cast<float>(x));
      }
    }
    return entry;
  }
  mutable std::map<std::tuple<bool, size_t, int32_t, int32_t>, std::vector<double>> entries_;
};

std::vector<int32_t> Lengths(const std::vector<TestSequence>& sequences) {
  std::vector<int32_t> lengths;
  for (const TestSequence& sequence : sequences) lengths.push_back(sequence.context);
  return lengths;
}

class CudaAttention : public ::testing::TestWithParam<const KvFormat*> {};

TEST_P(CudaAttention, IsSoftmaxOverTheStoredKeysOfEverySequenceOfAMixedBatch) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(::testing::Message() << shape.heads << " heads of " << shape.head_dim);
    Attention attention(*GetParam(), shape, Lengths(kMixed));
    const auto out = attention.Run(kMixed);
    const auto width = static_cast<size_t>(shape.heads * shape.head_dim);
    size_t row = 0;
    for (size_t s = 0; s < kMixed.size(); ++s) {
      const auto [context, tokens] = kMixed[s];
      for (int32_t t = context - tokens; t < context; ++t, ++row) {
        if (tokens > 8 && t % 7 != 0 && t != context - 1) continue;
        double largest = 0;
        const auto expected = attention.Reference(s, t, &largest);
        for (size_t i = 0; i < width; ++i) {
          // A weight is rounded to bf16 at most twice, before and after it meets the value's scale,
          // by a quarter of an epsilon each.
          ASSERT_TRUE(Near(out[row * width + i], expected[i], kEpsilonBF16 / 2 * largest))
              << "sequence " << s << " position " << t << " element " << i;
        }
      }
    }
    Emulator().schedule = Schedule::kDescending;
    EXPECT_EQ(attention.Run(kMixed), out);
    Emulator().schedule = Schedule::kAscending;
    EXPECT_EQ(attention.Run(kMixed), out);
  }
}

// Decoded one by one (split), in chunks and beside others, in other blocks: the same bits, over the
// borders of tiles and runs.
TEST_P(CudaAttention, ARowsBitsDependOnWhatItSeesAlone) {
  for (const Shape& shape :
       {Shape{4, 2, 64, 0, 0.0f}, Shape{8, 1, 128, 530, 30.0f}, Shape{2, 1, 256, 0, 0.0f}}) {
    SCOPED_TRACE(shape.head_dim);
    const int32_t end = 1030;
    Attention attention(*GetParam(), shape, {end});
    const auto rows = attention.Run({{end, 10}});
    const auto width = int64_t{shape.heads} * shape.head_dim;
    const auto slice = [&](int64_t first, int64_t count) {
      return std::vector<float>(rows.begin() + first * width,
                                rows.begin() + (first + count) * width);
    };
    for (int32_t t = end - 10; t < end; ++t) {
      EXPECT_EQ(attention.Run({{t + 1, 1}}), slice(t - (end - 10), 1)) << "alone, position " << t;
    }
    const auto chunk = attention.Run({{end - 3, 40}});
    EXPECT_EQ(std::vector<float>(chunk.end() - 7 * width, chunk.end()), slice(0, 7));
    Attention moved(*GetParam(), shape, {end, 200, 90}, 7);
    const auto batch = moved.Run({{end, 1}, {200, 1}, {90, 30}});
    // The keys and values of the first sequence are the first of the random numbers.
    EXPECT_EQ(std::vector<float>(batch.begin(), batch.begin() + width), slice(9, 1));
  }
}

// Parts of tiles and of runs, blocks of any size, sequences that find no room for their parts.
TEST_P(CudaAttention, HowTheWorkIsCutChangesNoBit) {
  const std::vector<TestSequence> sequences = {{1100, 1}, {40, 1}, {0, 0}, {700, 1}, {90, 12}};
  for (const Shape& shape : {Shape{18, 2, 24, 0, 0.0f}, Shape{4, 1, 128, 610, 0.0f}}) {
    Attention attention(*GetParam(), shape, Lengths(sequences));
    const auto out = attention.Run(sequences);
    for (const AttentionTuning& tuning :
         {AttentionTuning{8, 2, 2, 0}, {8, 4, 4, 0}, {8, 0, 8, 3}, {1, 0, 0, 18}}) {
      EXPECT_EQ(attention.Run(sequences, Attention::kPlain, nullptr, tuning), out)
          << tuning.part_tiles << " " << tuning.decode_warps << " " << tuning.prefill_warps << " "
          << tuning.max_parts;
    }
  }
}

TEST_P(CudaAttention, WhatIsNotFiniteReachesItsSequenceAndNoOther) {
  const Shape shape{4, 2, 64, 0, 0.0f};
  for (const bool key : {true, false}) {
    for (const int32_t context : {70, 600}) {
      Attention attention(*GetParam(), shape, {context, 100});
      const auto clean = attention.Run({{context, 1}, {100, 1}});
      attention.kv.Poison(key, 0, 68, 1);
      const auto out = attention.Run({{context, 1}, {100, 1}});
      const size_t half = 2 * 64;  // heads 0 and 1 read kv head 0
      for (size_t i = 0; i < out.size(); ++i) {
        if (i >= half && i < 2 * half) continue;
        EXPECT_EQ(out[i], clean[i]) << i;
      }
      EXPECT_TRUE(std::isnan(out[half]));
      EXPECT_TRUE(std::isnan(out[half + 64]));
      // Rows before it, in a batch without it.
      const auto before = attention.Run({{68, 1}, {100, 1}});
      for (const float x : before) EXPECT_TRUE(std::isfinite(x));
    }
  }
}

TEST_P(CudaAttention, EveryOutputFormatIsOfTheSameFloats) {
  constexpr ActFormat kFormats[] = {{DType::kF32, 0}, {DType::kBF16, 0}, {DType::kI8, 32}};
  const Shape shape{4, 2, 24, 0, 0.0f};
  const std::vector<TestSequence> sequences = {{600, 1}, {30, 1}, {40, 5}};
  Attention attention(*GetParam(), shape, Lengths(sequences));
  std::unique_ptr<ActsOnDevice> outputs;
  const auto floats = attention.Run(sequences, kFormats, &outputs);
  EXPECT_EQ(floats, attention.Run(sequences));
  EXPECT_EQ(As<uint16_t>(outputs->Data(1)), ToBF16(floats));
  const auto codes = As<int8_t>(outputs->Data(2));
  for (size_t begin = 0; begin < floats.size(); begin += 32) {
    float absmax = 0;
    for (size_t i = begin; i < begin + 32; ++i) absmax = std::max(absmax, std::abs(floats[i]));
    for (size_t i = begin; i < begin + 32; ++i) {
      ASSERT_EQ(codes[i], EncodeInt8(floats[i], Int8InverseScale(absmax)));
    }
    EXPECT_EQ(outputs->Scales(2)[begin / 32], Int8Scale(absmax));
  }
}

TEST_P(CudaAttention, NamesWhatItHasNoKernelFor) {
  DeviceInfo device = TestDevice().info();
  KvSpec spec{GetParam(), 1, 1, 128};
  EXPECT_TRUE(CheckAttention(device, spec).ok());
  spec.head_dim = 20;
  EXPECT_EQ(CheckAttention(device, spec).code(), absl::StatusCode::kUnimplemented);
  spec.head_dim = 264;
  EXPECT_EQ(CheckAttention(device, spec).code(), absl::StatusCode::kUnimplemented);
  spec.head_dim = 128;
  device.shared_bytes_per_block = 16 << 10;
  EXPECT_EQ(CheckAttention(device, spec).code(), absl::StatusCode::kUnimplemented);
}

std::vector<const KvFormat*> AllFormats() {
  std::vector<const KvFormat*> formats;
  for (const KvFormat& format : kKvFormats) formats.push_back(&format);
  return formats;
}
INSTANTIATE_TEST_SUITE_P(Formats, CudaAttention, ::testing::ValuesIn(AllFormats()),
                         [](const auto& format) { return std::string(format.param->name); });

}  // namespace
}  // namespace nibble::testing
