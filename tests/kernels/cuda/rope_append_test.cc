// SPDX-License-Identifier: Apache-2.0
// Head norm and rotation against their definition, and what is appended against the codec: the
// codes of the rotated f32 values, to the bit.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/cuda/paged_kv.h"
#include "tests/support/cuda/simt_emulator.h"
#include "tests/support/near.h"

namespace nibble::testing {
namespace {

struct Shape {
  int32_t heads, kv_heads, head_dim, rotary_dim;
};
constexpr Shape kShapes[] = {
    {1, 1, 8, 8},      // stories260K has heads of 8
    {6, 2, 24, 10},    // part of the head rotated
    {4, 2, 64, 64},    //
    {3, 1, 80, 80},    // a tail group of int4
    {2, 1, 128, 64},   //
    {2, 2, 256, 256},  // the largest
};
constexpr float kOffset = 1.0f, kEps = 1e-5f;

struct Rows {
  std::vector<float> q, k, v, cos, sin, norm;
};
Rows RandomRows(const Shape& shape, int32_t rows, int32_t positions) {
  const int64_t half = shape.rotary_dim / 2;
  Rows x{RandomFloats(int64_t{rows} * shape.heads * shape.head_dim, 1),
         RandomFloats(int64_t{rows} * shape.kv_heads * shape.head_dim, 2),
         RandomFloats(int64_t{rows} * shape.kv_heads * shape.head_dim, 3),
         RandomFloats(positions * half, 4),
         RandomFloats(positions * half, 5),
         RandomFloats(shape.head_dim, 6)};
  return x;
}

// A head after norm and rotation.
std::vector<double> Rotated(const Shape& shape, const Rows& rows, bool norm, const float* x,
                            int32_t position) {
  const auto dim = static_cast<size_t>(shape.head_dim);
  double squares = 0;
  for (size_t d = 0; d < dim; ++d) squares += double{x[d]} * x[d];
  std::vector<double> y(x, x + dim);
  if (norm) {
    for (size_t d = 0; d < dim; ++d) {
      y[d] *= (kOffset + rows.norm[d]) / std::sqrt(squares / static_cast<double>(dim) + kEps);
    }
  }
  const auto half = static_cast<size_t>(shape.rotary_dim / 2);
  for (size_t i = 0; i < half; ++i) {
    const size_t at = static_cast<size_t>(position) * half + i;
    const double a = y[i], b = y[half + i];
    y[i] = a * rows.cos[at] - b * rows.sin[at];
    y[half + i] = b * rows.cos[at] + a * rows.sin[at];
  }
  return y;
}

// A value through the format's quantizer, of a whole entry.
std::vector<double> Stored(KvCode code, const std::vector<float>& x) {
  std::vector<double> y;
  const auto width = code == KvCode::kInt4 ? size_t{kKvInt4Group} : x.size();
  for (size_t begin = 0; begin < x.size(); begin += width) {
    const size_t end = std::min(begin + width, x.size());
    KvSpan span;
    for (size_t d = begin; d < end; ++d) span = Merge(span, KvSpanOf(x[d]));
    const KvInt4Scale group = KvInt4ScaleOf(span);
    for (size_t d = begin; d < end; ++d) {
      switch (code) {
        case KvCode::kF32:
          y.push_back(x[d]);
          break;
        case KvCode::kBF16:
          y.push_back(RoundToBF16(x[d]));
          break;
        case KvCode::kFp8:
          y.push_back(double{E4M3ToF32(EncodeKvFp8(x[d], KvFp8Inverse(span)))} * KvFp8Scale(span));
          break;
        case KvCode::kInt8:
          y.push_back(static_cast<double>(EncodeInt8(x[d], Int8InverseScale(KvAbsMax(span)))) *
                      KvInt8Scale(span));
          break;
        case KvCode::kInt4:
          y.push_back(
              DecodeKvInt4(EncodeKvInt4(x[d], BF16ToF32(group.low), KvInt4Inverse(group)), group));
          break;
      }
    }
  }
  return y;
}

class CudaRopeAppend : public ::testing::TestWithParam<const KvFormat*> {};

TEST_P(CudaRopeAppend, RotatesInPlaceAndAppendsTheCodesOfTheRotatedFloats) {
  const KvFormat& format = *GetParam();
  const std::vector<TestSequence> sequences = {{70, 9}, {3, 3}, {130, 1}};
  const int32_t rows = 13;
  for (const Shape& shape : kShapes) {
    for (const bool norm : {false, true}) {
      SCOPED_TRACE(::testing::Message() << shape.head_dim << (norm ? " with norms" : ""));
      const Rows x = RandomRows(shape, rows, 130);
      std::vector<std::vector<float>> written;
      for (const Schedule schedule : {Schedule::kAscending, Schedule::kDescending}) {
        Emulator().schedule = schedule;
        PagedKv kv(format, shape.kv_heads, shape.head_dim, {70, 3, 130});
        const BatchOnDevice batch(sequences, kv.table());
        const OnDevice<float> q(x.q), k(x.k), v(x.v), cos(x.cos), sin(x.sin), weight(x.norm);
        RopeAppendArgs args{};
        args.batch = &batch.view();
        args.q.data = q.data();
        args.k.data = k.data();
        args.v.data = v.data();
        args.heads = shape.heads;
        args.rotary_dim = shape.rotary_dim;
        args.cos_table = cos.data();
        args.sin_table = sin.data();
        args.q_norm = args.k_norm = norm ? weight.data() : nullptr;
        args.norm_weight_offset = kOffset;
        args.norm_eps = kEps;
        args.kv = &kv.pool();
        args.layer = PagedKv::kLayer;
        LaunchRopeAppend(TestDevice(), args);
        kv.Download();
        written.push_back(q.Read());
        written.push_back(k.Read());
        EXPECT_EQ(v.Read(), x.v);
        const auto& rotated = written.back();
        size_t row = 0;
        for (size_t s = 0; s < sequences.size(); ++s) {
          const auto [context, tokens] = sequences[s];
          for (int32_t t = context - tokens; t < context; ++t, ++row) {
            for (int32_t h = 0; h < shape.kv_heads; ++h) {
              const auto at = (row * static_cast<size_t>(shape.kv_heads) + static_cast<size_t>(h)) *
                              static_cast<size_t>(shape.head_dim);
              const auto entry = [&](const std::vector<float>& from) {
                return std::vector<float>(from.begin() + static_cast<int64_t>(at),
                                          from.begin() + static_cast<int64_t>(at) + shape.head_dim);
              };
              EXPECT_EQ(kv.Entry(true, s, t, h), Stored(format.k, entry(rotated)));
              EXPECT_EQ(kv.Entry(false, s, t, h), Stored(format.v, entry(x.v)));
            }
            for (int32_t h = 0; h < shape.heads + shape.kv_heads; ++h) {
              const bool query = h < shape.heads;
              const int32_t width = query ? shape.heads : shape.kv_heads;
              const size_t at = (row * static_cast<size_t>(width) +
                                 static_cast<size_t>(query ? h : h - shape.heads)) *
                                static_cast<size_t>(shape.head_dim);
              const auto expected = Rotated(shape, x, norm, (query ? x.q : x.k).data() + at, t);
              const auto& actual = written[written.size() - (query ? 2 : 1)];
              for (size_t d = 0; d < expected.size(); ++d) {
                ASSERT_TRUE(Near(actual[at + d], expected[d],
                                 SumTolerance(kEpsilonF32, shape.head_dim, 10)));
              }
            }
          }
        }
      }
      Emulator().schedule = Schedule::kAscending;
      EXPECT_EQ(written[0], written[2]);
      EXPECT_EQ(written[1], written[3]);
    }
  }
}

// Activations in bf16 are rounded when they are written; the cache gets the value before that.
TEST_P(CudaRopeAppend, TakesAndWritesBF16) {
  const Shape shape{2, 1, 64, 64};
  const Rows x = RandomRows(shape, 3, 3);
  PagedKv kv(*GetParam(), 1, 64, {3});
  const BatchOnDevice batch({{3, 3}}, kv.table());
  const OnDevice<uint16_t> q(ToBF16(x.q)), k(ToBF16(x.k)), v(ToBF16(x.v));
  const OnDevice<float> cos(x.cos), sin(x.sin);
  RopeAppendArgs args{};
  args.batch = &batch.view();
  args.q = {q.data(), DType::kBF16};
  args.k = {k.data(), DType::kBF16};
  args.v = {v.data(), DType::kBF16};
  args.heads = 2;
  args.rotary_dim = 64;
  args.cos_table = cos.data();
  args.sin_table = sin.data();
  args.kv = &kv.pool();
  args.layer = PagedKv::kLayer;
  LaunchRopeAppend(TestDevice(), args);
  kv.Download();
  const auto rounded = FromBF16(k.Read());
  const auto rounded_v = FromBF16(ToBF16(x.v));
  for (int32_t t = 0; t < 3; ++t) {
    const auto in = FromBF16(ToBF16({x.k.begin() + 64 * t, x.k.begin() + 64 * (t + 1)}));
    std::vector<float> rotated;
    for (size_t d = 0; d < 64; ++d) {
      const auto at = static_cast<size_t>(t) * 32 + d % 32;
      rotated.push_back(d < 32 ? in[d] * x.cos[at] - in[d + 32] * x.sin[at]
                               : in[d] * x.cos[at] + in[d - 32] * x.sin[at]);
      EXPECT_EQ(rounded[static_cast<size_t>(t) * 64 + d], RoundToBF16(rotated[d]));
    }
    EXPECT_EQ(kv.Entry(true, 0, t, 0), Stored(GetParam()->k, rotated));
    EXPECT_EQ(kv.Entry(false, 0, t, 0), Stored(GetParam()->v, {rounded_v.begin() + 64 * t,
                                                               rounded_v.begin() + 64 * (t + 1)}));
  }
}

std::vector<const KvFormat*> AllFormats() {
  std::vector<const KvFormat*> formats;
  for (const KvFormat& format : kKvFormats) formats.push_back(&format);
  return formats;
}
INSTANTIATE_TEST_SUITE_P(Formats, CudaRopeAppend, ::testing::ValuesIn(AllFormats()),
                         [](const auto& format) { return std::string(format.param->name); });

}  // namespace
}  // namespace nibble::testing
