// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/quant/algorithm.h"
#include "kernels/codec.h"
#include "tests/engine/quant/random_matrix.h"

namespace nibble {
namespace {

using testing::HessianOf;
using testing::Objective;
using testing::RandomInputs;
using testing::RandomMatrix;

const Scheme& Named(std::string_view name) { return *FindScheme(name); }

QuantizedWeight Gptq(const Matrix& w, const Scheme& scheme, const Matrix& h, GptqOptions options,
                     int threads = 1, const GroupScales* scales = nullptr) {
  absl::StatusOr<QuantizedWeight> q =
      RoundGptq(RoundingProblem{&w, &scheme, &h, scales, &options, threads});
  EXPECT_TRUE(q.ok()) << q.status();
  return *std::move(q);
}

// GPTQ as the paper's first equations have it, in double: after each column, the optimal change of
// all others from the inverse of what is left of the Hessian. Returns values, and the distance of
// every quotient from the nearest half.
struct Reference {
  std::vector<double> values;
  double closest = 1;
};
Reference ReferenceRow(const float* w, const Scheme& scheme, const GroupScales& scales, int64_t n,
                       const Matrix& hessian, double damping, const std::vector<int64_t>& order) {
  const auto k = static_cast<size_t>(hessian.rows);
  double mean = 0;
  for (size_t i = 0; i < k; ++i) {
    mean += static_cast<double>(hessian.values[i * k + i]) / static_cast<double>(k);
  }
  // Inverse by Gauss-Jordan in the order of the columns.
  std::vector<double> a(k * k);
  std::vector<double> inv(k * k, 0.0);
  for (size_t i = 0; i < k; ++i) {
    for (size_t j = 0; j < k; ++j) {
      a[i * k + j] = static_cast<double>(
          hessian.values[static_cast<size_t>(order[i]) * k + static_cast<size_t>(order[j])]);
    }
    a[i * k + i] += damping * mean;
    inv[i * k + i] = 1;
  }
  for (size_t p = 0; p < k; ++p) {
    const double pivot = a[p * k + p];
    for (size_t j = 0; j < k; ++j) {
      a[p * k + j] /= pivot;
      inv[p * k + j] /= pivot;
    }
    for (size_t i = 0; i < k; ++i) {
      if (i == p) continue;
      const double f = a[i * k + p];
      for (size_t j = 0; j < k; ++j) {
        a[i * k + j] -= f * a[p * k + j];
        inv[i * k + j] -= f * inv[p * k + j];
      }
    }
  }
  Reference result;
  result.values.resize(k);
  std::vector<double> work(k);
  for (size_t i = 0; i < k; ++i) work[i] = static_cast<double>(w[order[i]]);
  for (size_t i = 0; i < k; ++i) {
    const auto column = static_cast<size_t>(order[i]);
    const auto g =
        static_cast<size_t>(n * scales.groups + order[i] / scheme.GroupWidth(hessian.rows));
    const auto scale = static_cast<double>(scales.scale[g]);
    const int zero = scales.zero[g];
    const double quotient = work[i] / scale + zero;
    const double q = std::clamp(std::nearbyint(quotient), static_cast<double>(scheme.code_min()),
                                static_cast<double>(scheme.code_max()));
    result.closest =
        std::min(result.closest, std::fabs(std::fabs(quotient - std::floor(quotient)) - 0.5));
    result.values[column] = (q - zero) * scale;
    const double error = (work[i] - result.values[column]) / inv[i * k + i];
    for (size_t j = i; j < k; ++j) work[j] -= error * inv[i * k + j];
    const double pivot = inv[i * k + i];  // eliminate column i from the inverse
    std::vector<double> row(inv.begin() + static_cast<ptrdiff_t>(i * k),
                            inv.begin() + static_cast<ptrdiff_t>((i + 1) * k));
    for (size_t r = i + 1; r < k; ++r) {
      const double f = inv[r * k + i] / pivot;
      for (size_t j = i; j < k; ++j) inv[r * k + j] -= f * row[j];
    }
  }
  return result;
}

TEST(Gptq, WorkedByHand) {
  // Two fully usable columns, scale 1, H = [[5, 2], [2, 1]] without damping to speak of: U =
  // [[1, -2], [0, 1]]. Column 0: w = 0.4 -> 0, e = 0.4 / 1, and w_1 = 0.3 - 0.4 * -2 = 1.1 -> 1.
  // Round to nearest would say (0, 0), with error (0.4, 0.3): 5*.16 + 4*.12 + .09 = 1.37; GPTQ's
  // (0.4, -0.7): 0.8 - 1.12 + 0.49 = 0.17.
  const Scheme scheme{"pair",       DType::kI4,   Container::kPacked, 2,
                      DType::kBF16, DType::kNone, Activation::kFloat};
  Matrix w(1, 2);
  w.values = {0.4f, 0.3f};
  Matrix h(2, 2);
  h.values = {5, 2, 2, 1};
  GroupScales scales(1, 1);
  scales.scale[0] = 1.0f;
  GptqOptions options;
  options.damping = 1e-6;
  const QuantizedWeight q = Gptq(w, scheme, h, options, 1, &scales);
  EXPECT_EQ(ReadCode(q.view(), 0, 0), 0);
  EXPECT_EQ(ReadCode(q.view(), 0, 1), 1);
}

TEST(Gptq, AgreesWithTheDoublePrecisionReference) {
  constexpr int64_t kRows = 40;
  constexpr int64_t kCols = 256;
  const Matrix w = RandomMatrix(kRows, kCols, 21);
  const Matrix h = HessianOf(RandomInputs(600, kCols, 22));
  for (const std::string_view name :
       {"int4-g64", "int4-g128-asym", "int8", "int3-g64-asym", "int2-g64"}) {
    for (const bool act_order : {false, true}) {
      const Scheme& scheme = Named(name);
      GptqOptions options;
      options.act_order = act_order;
      options.block_columns = 64;
      const GroupScales scales = AbsmaxScales(w, scheme, 1);
      std::vector<int64_t> order(kCols);
      std::iota(order.begin(), order.end(), 0);
      if (act_order) {
        std::stable_sort(order.begin(), order.end(),
                         [&](int64_t a, int64_t b) { return h.at(a, a) > h.at(b, b); });
      }
      const Matrix q = Dequantize(Gptq(w, scheme, h, options, 1, &scales).view(), 1);
      int compared = 0;
      for (int64_t n = 0; n < kRows; ++n) {
        const Reference reference =
            ReferenceRow(w.row(n), scheme, scales, n, h, options.damping, order);
        if (reference.closest < 1e-4) continue;  // a tie that f32 may break the other way
        ++compared;
        for (int64_t k = 0; k < kCols; ++k) {
          ASSERT_FLOAT_EQ(q.at(n, k), static_cast<float>(reference.values[static_cast<size_t>(k)]))
              << name << " row " << n << " column " << k;
        }
      }
      EXPECT_GT(compared, 10) << name;
    }
  }
}

TEST(Gptq, IsNeverWorseThanRoundingToNearestAndUsuallyMuchBetter) {
  const Matrix w = RandomMatrix(60, 128, 23);
  for (const int64_t tokens : {20, 128, 1000}) {  // 20 tokens: a singular Hessian
    const Matrix h = HessianOf(RandomInputs(tokens, 128, 24));
    for (const std::string_view name : {"int4-g32", "int4-g128", "int4-g64-asym", "w8a8",
                                        "int3-g64", "int2-g32-asym", "nf4", "fp8"}) {
      const Scheme& scheme = Named(name);
      const GroupScales scales = AbsmaxScales(w, scheme, 1);
      const Matrix nearest = NearestValues(w, scheme, scales, 1);
      const Matrix q = Dequantize(Gptq(w, scheme, h, {}, 1, &scales).view(), 1);
      double sum = 0;
      double sum_nearest = 0;
      for (int64_t n = 0; n < w.rows; ++n) {
        const double own = Objective(w.row(n), q.row(n), h);
        const double other = Objective(w.row(n), nearest.row(n), h);
        EXPECT_LE(own, other * (1 + 1e-4)) << name << " row " << n;
        sum += own;
        sum_nearest += other;
      }
      EXPECT_LT(sum, 0.7 * sum_nearest) << name << " with " << tokens << " tokens";
    }
  }
}

TEST(Gptq, GivesTheSameBitsForAnyThreads) {
  const Matrix w = RandomMatrix(130, 256, 25);
  const Matrix h = HessianOf(RandomInputs(300, 256, 26));
  const QuantizedWeight one = Gptq(w, Named("int4-g128"), h, {});
  for (const int threads : {2, 7}) {
    const QuantizedWeight other = Gptq(w, Named("int4-g128"), h, {}, threads);
    for (int i = 0; i < one.tensors().count; ++i) EXPECT_EQ(other.bytes(i), one.bytes(i));
  }
}

TEST(Gptq, DoesNotDependOnTheRowsBesideIt) {
  const Matrix w = RandomMatrix(70, 64, 27);
  const Matrix h = HessianOf(RandomInputs(300, 64, 28));
  const Matrix all = Dequantize(Gptq(w, Named("int4-g32"), h, {}).view(), 1);
  Matrix last(1, 64);
  std::copy(w.row(69), w.row(69) + 64, last.row(0));
  const Matrix alone = Dequantize(Gptq(last, Named("int4-g32"), h, {}).view(), 1);
  EXPECT_TRUE(std::equal(alone.row(0), alone.row(0) + 64, all.row(69)));
}

TEST(Gptq, OrderOfEqualColumnsIsTheirIndexAndPermutingInputsPermutesCodes) {
  // With act-order and one scale per row, the order in which features come does not matter.
  constexpr int64_t kCols = 96;
  const Matrix w = RandomMatrix(20, kCols, 29);
  const Matrix x = RandomInputs(400, kCols, 30);
  std::vector<int64_t> order(kCols);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 generator(31);
  std::shuffle(order.begin(), order.end(), generator);
  Matrix w2(w.rows, kCols);
  Matrix x2(x.rows, kCols);
  for (int64_t j = 0; j < kCols; ++j) {
    for (int64_t n = 0; n < w.rows; ++n) w2.at(n, j) = w.at(n, order[static_cast<size_t>(j)]);
    for (int64_t t = 0; t < x.rows; ++t) x2.at(t, j) = x.at(t, order[static_cast<size_t>(j)]);
  }
  GptqOptions options;
  options.mse_clip = false;  // its sums run over the columns as they come
  const Matrix q = Dequantize(Gptq(w, Named("int8"), HessianOf(x), options).view(), 1);
  const Matrix q2 = Dequantize(Gptq(w2, Named("int8"), HessianOf(x2), options).view(), 1);
  for (int64_t n = 0; n < w.rows; ++n) {
    for (int64_t j = 0; j < kCols; ++j) {
      ASSERT_EQ(q2.at(n, j), q.at(n, order[static_cast<size_t>(j)]));
    }
  }
}

TEST(Gptq, SetsColumnsThatNeverSawAnInputToZeroAndLetsThemDisturbNothing) {
  Matrix w = RandomMatrix(8, 64, 32);
  Matrix x = RandomInputs(200, 64, 33);
  for (int64_t t = 0; t < x.rows; ++t) x.at(t, 40) = 0;
  const Matrix h = HessianOf(x);
  const Matrix q = Dequantize(Gptq(w, Named("int4-g64"), h, {}).view(), 1);
  for (int64_t n = 0; n < 8; ++n) w.at(n, 40) = 1000;  // would spoil the scale if it counted
  const Matrix q2 = Dequantize(Gptq(w, Named("int4-g64"), h, {}).view(), 1);
  for (int64_t n = 0; n < 8; ++n) EXPECT_EQ(q.at(n, 40), 0.0f);
  EXPECT_EQ(q.values, q2.values);
}

TEST(Gptq, RoundsToNearestWhereNothingWasEverSeen) {
  const Matrix w = RandomMatrix(3, 32, 34);
  const Matrix h(32, 32);
  const Matrix q = Dequantize(Gptq(w, Named("int4-g32"), h, {}).view(), 1);
  for (const float value : q.values) EXPECT_EQ(value, 0.0f);
}

TEST(Gptq, RaisesTheDampingUntilASingularHessianFactors) {
  // One direction only, seen once: rank one. f32 rounding makes it indefinite at tiny damping.
  Matrix x(1, 128);
  for (int64_t j = 0; j < 128; ++j) x.at(0, j) = 1.0f + 0.01f * static_cast<float>(j);
  const Matrix w = RandomMatrix(4, 128, 35);
  GptqOptions options;
  options.damping = 1e-6;
  const Matrix h = HessianOf(x);
  const Matrix q = Dequantize(Gptq(w, Named("int4-g128"), h, options).view(), 1);
  for (int64_t n = 0; n < 4; ++n) {
    const GroupScales scales = AbsmaxScales(w, Named("int4-g128"), 1);
    EXPECT_LE(Objective(w.row(n), q.row(n), h),
              Objective(w.row(n), NearestValues(w, Named("int4-g128"), scales, 1).row(n), h));
  }
}

TEST(Gptq, ReportsAHessianThatNoDampingHelps) {
  Matrix h(32, 32);
  for (int64_t i = 0; i < 32; ++i) h.at(i, i) = INFINITY;
  const Matrix w = RandomMatrix(1, 32, 36);
  const GptqOptions options;
  const absl::StatusOr<QuantizedWeight> q =
      RoundGptq(RoundingProblem{&w, &Named("int4-g32"), &h, nullptr, &options, 1});
  EXPECT_EQ(q.status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace nibble
