// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "kernels/backend.h"
#include "kernels/kv_codec.h"
#include "tests/kernels/activations.h"
#include "tests/support/near.h"

namespace nibble::testing {
namespace {

struct Shape {
  int32_t heads, kv_heads, head_dim, rotary_dim, window;
  float softcap;
};

constexpr Shape kShapes[] = {
    {1, 1, 8, 8, 0, 0.0f},     // stories260K has heads of 8
    {4, 2, 64, 64, 0, 0.0f},   // grouped queries
    {6, 2, 20, 10, 0, 0.0f},   // a tail of the vector, part of the head rotated
    {2, 1, 80, 80, 70, 0.0f},  // a window longer than a block
    {3, 3, 16, 16, 5, 30.0f},  // a window inside a block, capped scores
    {2, 2, 128, 64, 64, 50.0f}, {2, 1, 37, 8, 0, 0.0f},  // an odd head
    {36, 1, 8, 8, 0, 0.0f},  // more queries of one kv head than are computed together
};

constexpr int32_t kTokens = 150;  // three blocks, the last one short

// One sequence of kTokens random tokens, run through RopeAppend and Attention in chunks.
class Sequence {
 public:
  Sequence(Backend& backend, const Shape& shape, const KvFormat& format, bool norms)
      : backend_(backend), shape_(shape), norms_(norms) {
    const int64_t width = int64_t{shape.heads} * shape.head_dim;
    const int64_t kv_width = int64_t{shape.kv_heads} * shape.head_dim;
    q = RandomFloats(kTokens * width, 1);
    k = RandomFloats(kTokens * kv_width, 2);
    v = RandomFloats(kTokens * kv_width, 3);
    const int64_t half = shape.rotary_dim / 2;
    cos.resize(static_cast<size_t>(kTokens * half));
    sin.resize(cos.size());
    for (int64_t p = 0; p < kTokens; ++p) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(p) *
                             std::pow(100.0, -static_cast<double>(i) / static_cast<double>(half));
        cos[static_cast<size_t>(p * half + i)] = static_cast<float>(std::cos(angle));
        sin[static_cast<size_t>(p * half + i)] = static_cast<float>(std::sin(angle));
      }
    }
    norm = RandomFloats(shape.head_dim, 4);
    // Two layers and foreign blocks around: the layer under test is the second.
    spec_ = KvSpec{&format, 2, shape.kv_heads, shape.head_dim};
    memory_ = backend.AllocateKv(spec_, 7, &pool_).value();
  }

  // The outputs of all tokens, and the rotated queries in `rotated`.
  std::vector<float> Chunks(const std::vector<int32_t>& lengths) {
    const int64_t width = int64_t{shape_.heads} * shape_.head_dim;
    const int64_t kv_width = int64_t{shape_.kv_heads} * shape_.head_dim;
    std::vector<float> out;
    rotated_q.clear();
    rotated_k.clear();
    int32_t start = 0;
    for (const int32_t rows : lengths) {
      std::vector<int32_t> positions, row_sequence(static_cast<size_t>(rows), 0);
      for (int32_t r = 0; r < rows; ++r) positions.push_back(start + r);
      const int32_t query_start[] = {0, rows};
      const int32_t context = start + rows;
      const int32_t table[] = {5, 1, 3};
      BatchView batch;
      batch.rows = rows;
      batch.sequences = 1;
      batch.max_query = rows;
      batch.positions = positions.data();
      batch.row_sequence = row_sequence.data();
      batch.query_start = query_start;
      batch.context_length = &context;
      batch.block_table = table;
      batch.max_blocks = 3;

      const auto slice = [&](const std::vector<float>& all, int64_t stride) {
        return TakeFloats(backend_,
                          {all.begin() + start * stride, all.begin() + (start + rows) * stride});
      };
      auto q_rows = slice(q, width);
      auto k_rows = slice(k, kv_width);
      auto v_rows = slice(v, kv_width);
      RopeAppendArgs rope{};
      rope.batch = &batch;
      rope.q.data = q_rows->data();
      rope.k.data = k_rows->data();
      rope.v.data = v_rows->data();
      rope.heads = shape_.heads;
      rope.rotary_dim = shape_.rotary_dim;
      rope.cos_table = cos.data();
      rope.sin_table = sin.data();
      rope.q_norm = norms_ ? norm.data() : nullptr;
      rope.k_norm = norms_ ? norm.data() : nullptr;
      rope.norm_weight_offset = 1.0f;
      rope.norm_eps = 1e-5f;
      rope.kv = &pool_;
      rope.layer = 1;
      backend_.RopeAppend(rope);
      const ActFormat plain{};
      Activations result(backend_, {&plain, 1}, rows, width);
      AttentionArgs args{};
      args.batch = &batch;
      args.q.data = q_rows->data();
      args.heads = shape_.heads;
      args.scale = 0.3f;
      args.window = shape_.window;
      args.softcap = shape_.softcap;
      args.kv = &pool_;
      args.layer = 1;
      args.out = result.set();
      backend_.Attention(args);
      const auto append = [](std::vector<float>& to, const void* data, int64_t count) {
        const auto* floats = static_cast<const float*>(data);
        to.insert(to.end(), floats, floats + count);
      };
      append(out, result.set().views[0].data, rows * width);
      append(rotated_q, q_rows->data(), rows * width);
      append(rotated_k, k_rows->data(), rows * kv_width);
      start += rows;
    }
    return out;
  }

  std::vector<float> q, k, v, cos, sin, norm, rotated_q, rotated_k;

 private:
  Backend& backend_;
  Shape shape_;
  bool norms_;
  KvSpec spec_;
  KvPool pool_;
  std::unique_ptr<Buffer> memory_;
};

// An entry after the round trip through the code.
std::vector<double> Stored(KvCode code, const float* x, int32_t dim) {
  std::vector<double> values;
  const int32_t group = code == KvCode::kInt4 ? kKvInt4Group : dim;
  for (int32_t begin = 0; begin < dim; begin += group) {
    const int32_t end = std::min(begin + group, dim);
    KvSpan span;
    for (int32_t d = begin; d < end; ++d) span = Merge(span, KvSpanOf(x[d]));
    const KvInt4Scale int4 = KvInt4ScaleOf(span);
    for (int32_t d = begin; d < end; ++d) {
      switch (code) {
        case KvCode::kF32:
          values.push_back(x[d]);
          break;
        case KvCode::kBF16:
          values.push_back(RoundToBF16(x[d]));
          break;
        case KvCode::kFp8:
          values.push_back(double{KvFp8Scale(span)} *
                           E4M3ToF32(EncodeKvFp8(x[d], KvFp8Inverse(span))));
          break;
        case KvCode::kInt8:
          values.push_back(double{KvInt8Scale(span)} *
                           EncodeInt8(x[d], Int8InverseScale(KvAbsMax(span))));
          break;
        case KvCode::kInt4:
          values.push_back(
              DecodeKvInt4(EncodeKvInt4(x[d], BF16ToF32(int4.low), KvInt4Inverse(int4)), int4));
          break;
      }
    }
  }
  return values;
}

class AttentionTest : public ::testing::TestWithParam<const KvFormat*> {};

TEST_P(AttentionTest, IsSoftmaxOverTheStoredKeysAndEqualInEveryTierAndChunking) {
  const KvFormat& format = *GetParam();
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(::testing::Message() << shape.heads << " heads of " << shape.head_dim);
    std::vector<float> reference;
    for (const std::string& tier : Tiers()) {
      for (const int threads : {1, 2}) {
        auto backend = MakeCpuBackend({.threads = threads, .tier = tier}).value();
        Sequence run(*backend, shape, format, false);
        const auto out = run.Chunks({kTokens});
        if (reference.empty()) {
          reference = out;
          const int64_t width = int64_t{shape.heads} * shape.head_dim;
          const int64_t kv_width = int64_t{shape.kv_heads} * shape.head_dim;
          for (int32_t h = 0; h < shape.heads; ++h) {
            const int64_t offset = int64_t{h} * shape.kv_heads / shape.heads * shape.head_dim;
            std::vector<std::vector<double>> keys, values;
            for (int64_t t = 0; t < kTokens; ++t) {
              keys.push_back(
                  Stored(format.k, run.rotated_k.data() + t * kv_width + offset, shape.head_dim));
              values.push_back(
                  Stored(format.v, run.v.data() + t * kv_width + offset, shape.head_dim));
            }
            for (int32_t t = 0; t < kTokens; ++t) {
              const float* query = run.rotated_q.data() + t * width + h * shape.head_dim;
              const int32_t oldest = shape.window > 0 ? std::max(0, t - shape.window + 1) : 0;
              std::vector<double> score;
              for (int32_t s = oldest; s <= t; ++s) {
                double sum = 0;
                for (int32_t d = 0; d < shape.head_dim; ++d) {
                  sum += query[d] * keys[static_cast<size_t>(s)][static_cast<size_t>(d)];
                }
                sum *= 0.3f;
                if (shape.softcap > 0) sum = shape.softcap * std::tanh(sum / shape.softcap);
                score.push_back(sum);
              }
              const double largest = *std::max_element(score.begin(), score.end());
              double total = 0;
              std::vector<double> y(static_cast<size_t>(shape.head_dim));
              for (int32_t s = oldest; s <= t; ++s) {
                const double weight = std::exp(score[static_cast<size_t>(s - oldest)] - largest);
                total += weight;
                for (size_t d = 0; d < y.size(); ++d)
                  y[d] += weight * values[static_cast<size_t>(s)][d];
              }
              for (size_t d = 0; d < y.size(); ++d) {
                // Scores of size up to 30 carry errors of 30 epsilon into the weights.
                ASSERT_TRUE(Near(out[static_cast<size_t>(t * width + h * shape.head_dim) + d],
                                 y[d] / total, SumTolerance(kEpsilonF32, kTokens, 30)))
                    << "token " << t << " head " << h << " element " << d;
              }
            }
          }
        }
        EXPECT_EQ(out, reference) << tier << ", " << threads << " threads";
        if (threads == 1) {
          EXPECT_EQ(run.Chunks(std::vector<int32_t>(kTokens, 1)), reference)
              << tier << " one by one";
        }
        EXPECT_EQ(run.Chunks({1, 64, 17, 3, 65}), reference) << tier << " in chunks";
      }
    }
  }
}

std::vector<const KvFormat*> AllFormats() {
  std::vector<const KvFormat*> formats;
  for (const KvFormat& format : kKvFormats) formats.push_back(&format);
  return formats;
}
INSTANTIATE_TEST_SUITE_P(Formats, AttentionTest, ::testing::ValuesIn(AllFormats()),
                         [](const auto& format) { return std::string(format.param->name); });

TEST(RopeTest, RotatesHalvesAfterTheHeadNorm) {
  const Shape shape{2, 1, 12, 8, 0, 0.0f};
  std::vector<float> scalar;
  for (const std::string& tier : Tiers()) {
    for (const bool norms : {false, true}) {
      auto backend = MakeCpuBackend({.threads = 1, .tier = tier}).value();
      Sequence run(*backend, shape, *FindKvFormat("f32"), norms);
      run.Chunks({kTokens});
      for (int64_t t = 0; t < kTokens; ++t) {
        for (int64_t h = 0; h < 2; ++h) {
          const float* x = run.q.data() + (t * 2 + h) * 12;
          const float* y = run.rotated_q.data() + (t * 2 + h) * 12;
          double squares = 0;
          for (int d = 0; d < 12; ++d) squares += double{x[d]} * x[d];
          const auto normed = [&](int d) {
            if (!norms) return double{x[d]};
            return x[d] / std::sqrt(squares / 12 + 1e-5) * (1.0 + run.norm[static_cast<size_t>(d)]);
          };
          for (int d = 0; d < 12; ++d) {
            const auto angle = static_cast<size_t>(t * 4 + d % 4);
            double expected = normed(d);
            if (d < 4) expected = normed(d) * run.cos[angle] - normed(d + 4) * run.sin[angle];
            if (d >= 4 && d < 8)
              expected = normed(d) * run.cos[angle] + normed(d - 4) * run.sin[angle];
            ASSERT_TRUE(Near(y[d], expected, SumTolerance(kEpsilonF32, 12, 10))) << t << ", " << d;
          }
        }
      }
    }
  }
}

TEST(KvPoolTest, CopiedBlocksAreReadInPlaceOfTheirSources) {
  auto backend = MakeCpuBackend({.threads = 1, .tier = ""}).value();
  const KvSpec spec{FindKvFormat("k8v4"), 3, 2, 16};
  KvPool pool;
  auto memory = backend->AllocateKv(spec, 4, &pool).value();
  EXPECT_EQ(memory->bytes(), static_cast<size_t>(4 * spec.BytesPerBlock()));
  auto* bytes = memory->as<uint8_t>();
  const auto block = static_cast<size_t>(spec.BytesPerBlock());
  for (size_t i = 0; i < block; ++i) bytes[i] = static_cast<uint8_t>(i * 7);
  backend->CopyKvBlock(pool, 0, 3);
  EXPECT_TRUE(std::equal(bytes, bytes + block, bytes + 3 * block));
  EXPECT_TRUE(std::all_of(bytes + block, bytes + 3 * block, [](uint8_t b) { return b == 0; }));
}

// Counted by hand for heads of 80: codes, then scales, of one key and one value.
TEST(KvSpecTest, ABlockHoldsCodesAndScalesOfItsKeysAndValues) {
  const std::map<std::string, int64_t> pair = {
      {"f32", 320 + 320},        {"bf16", 160 + 160},           {"fp8", 80 + 4 + 80 + 4},
      {"int8", 80 + 4 + 80 + 4}, {"k8v4", 80 + 4 + 40 + 2 * 4}, {"int4", 40 + 2 * 4 + 40 + 2 * 4}};
  for (const KvFormat& format : kKvFormats) {
    EXPECT_EQ((KvSpec{&format, 3, 2, 80}.BytesPerBlock()), 3 * 2 * 64 * pair.at(format.name));
  }
}

// A value that is not finite must not be hidden by its code: what attends to it is not finite.
TEST_P(AttentionTest, WhatIsNotFiniteReachesTheOutput) {
  const Shape shape{1, 1, 80, 80, 0, 0.0f};
  for (const std::string& tier : Tiers()) {
    for (const float poison : {std::nanf(""), HUGE_VALF}) {
      for (const bool in_key : {false, true}) {
        // An infinite key that is stored as such may give a score of -infinity, a weight of zero.
        if (in_key && std::isinf(poison) && !GetParam()->quantized()) continue;
        auto backend = MakeCpuBackend({.threads = 1, .tier = tier}).value();
        Sequence run(*backend, shape, *GetParam(), false);
        (in_key ? run.k : run.v)[5 * 80 + 70] = poison;
        const auto out = run.Chunks({kTokens});
        const auto finite = [&](int64_t token) {
          return std::all_of(out.begin() + token * 80, out.begin() + (token + 1) * 80,
                             [](float x) { return std::isfinite(x); });
        };
        EXPECT_TRUE(finite(4)) << tier;
        EXPECT_FALSE(finite(5)) << tier;
        EXPECT_FALSE(finite(kTokens - 1)) << tier;
      }
    }
  }
}

TEST(AttentionBatchTest, SequencesDoNotSeeEachOther) {
  auto backend = MakeCpuBackend({.threads = 2, .tier = ""}).value();
  constexpr int32_t kDim = 16;
  const KvSpec spec{FindKvFormat("bf16"), 1, 1, kDim};
  KvPool pool;
  auto memory = backend->AllocateKv(spec, 3, &pool).value();
  // Sequence 0 decodes position 70 of blocks 2, 0; sequence 1 prefills 3 tokens into block 1.
  const std::vector<float> zeros(kDim / 2 * 80, 0.0f);
  const std::vector<float> cos(static_cast<size_t>(kDim / 2 * 80), 1.0f);
  const auto attend = [&](std::vector<int32_t> positions, std::vector<int32_t> sequence,
                          std::vector<int32_t> start, std::vector<int32_t> context,
                          std::vector<int32_t> table, const std::vector<float>& rows) {
    BatchView batch;
    batch.rows = static_cast<int32_t>(positions.size());
    batch.sequences = static_cast<int32_t>(context.size());
    batch.max_query = 3;
    batch.positions = positions.data();
    batch.row_sequence = sequence.data();
    batch.query_start = start.data();
    batch.context_length = context.data();
    batch.block_table = table.data();
    batch.max_blocks = 2;
    auto q = TakeFloats(*backend, rows);
    auto k = TakeFloats(*backend, rows);
    auto v = TakeFloats(*backend, rows);
    RopeAppendArgs rope{};
    rope.batch = &batch;
    rope.q.data = q->data();
    rope.k.data = k->data();
    rope.v.data = v->data();
    rope.heads = 1;
    rope.rotary_dim = kDim;
    rope.cos_table = cos.data();
    rope.sin_table = zeros.data();
    rope.kv = &pool;
    backend->RopeAppend(rope);
    const ActFormat plain{};
    Activations result(*backend, {&plain, 1}, batch.rows, kDim);
    AttentionArgs args{};
    args.batch = &batch;
    args.q.data = q->data();
    args.heads = 1;
    args.scale = 0.25f;
    args.kv = &pool;
    args.out = result.set();
    backend->Attention(args);
    const auto* out = static_cast<const float*>(result.set().views[0].data);
    return std::vector<float>(out, out + batch.rows * kDim);
  };
  const auto rows = RandomFloats(4 * kDim, 6);
  const std::vector<float> first(rows.begin(), rows.begin() + kDim);
  const std::vector<float> rest(rows.begin() + kDim, rows.end());
  const auto a = attend({70}, {0}, {0, 1}, {71}, {2, 0}, first);
  const auto b = attend({0, 1, 2}, {0, 0, 0}, {0, 3}, {3}, {1, 1}, rest);
  auto both = attend({70, 0, 1, 2}, {0, 1, 1, 1}, {0, 1, 4}, {71, 3}, {2, 0, 1, 1}, rows);
  std::vector<float> expected = a;
  expected.insert(expected.end(), b.begin(), b.end());
  EXPECT_EQ(both, expected);
}

}  // namespace
}  // namespace nibble::testing
