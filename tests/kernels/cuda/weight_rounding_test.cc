// SPDX-License-Identifier: Apache-2.0
// Rounding weights on the device beside the quantizer's own code, which is the specification: the
// same bits.
#include "kernels/weight_rounding.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/quant/algorithm.h"
#include "engine/quant/cholesky.h"
#include "kernels/cuda/cuda_weight_rounding.h"
#include "kernels/cuda/ordered_product.h"
#include "tests/engine/quant/random_matrix.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/support/cuda/simt_emulator.h"

namespace nibble::testing {
namespace {

WeightRounding& Rounding() {
  static const std::unique_ptr<WeightRounding> rounding = MakeCudaWeightRounding(TestDevice());
  return *rounding;
}

// Calls body under both orders in which threads may take turns.
template <typename Body>
void UnderEverySchedule(Body&& body) {
  for (const Schedule schedule : {Schedule::kDescending, Schedule::kAscending}) {
    Emulator().schedule = schedule;
    body();
  }
}

// A Hessian with correlated and large features.
Matrix TestHessian(int64_t n, uint32_t seed) {
  Matrix h = HessianOf(RandomInputs(2 * n + 3, n, seed));
  for (int64_t i = 0; i < n; ++i) h.at(i, i) *= 1.01f;
  return h;
}

void ExpectEqualBytes(const QuantizedWeight& actual, const QuantizedWeight& expected,
                      std::string_view what) {
  for (int i = 0; i < expected.tensors().count; ++i) {
    EXPECT_EQ(actual.bytes(i), expected.bytes(i)) << what << ", tensor " << i;
  }
}

// ---- Products

TEST(CudaOrderedProduct, IsMultiplyAddToTheBit) {
  // Less than a stage, tails of tiles, several partial sums.
  const struct {
    int64_t m, n, k;
  } shapes[] = {{1, 1, 1}, {3, 130, 17}, {129, 5, 256}, {130, 131, 257}, {7, 9, 600}};
  for (const auto& [m, n, k] : shapes) {
    const Matrix a = RandomMatrix(m, k, 1);
    const Matrix b = RandomMatrix(k, n, 2);
    Matrix bt(n, k);
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < n; ++j) bt.at(j, i) = b.at(i, j);
    }
    for (const float sign : {1.0f, -1.0f}) {
      for (const bool fresh : {false, true}) {
        const Matrix start = RandomMatrix(m, n, 3);
        Matrix expected = fresh ? Matrix(m, n) : start;
        MultiplyAdd(sign, a.row(0), k, b.row(0), n, m, k, n, expected.row(0), n);
        for (const bool transposed : {false, true}) {
          UnderEverySchedule([&, &m = m, &n = n, &k = k] {
            const OnDevice<float> left(a.values), right(transposed ? bt.values : b.values);
            const OnDevice<float> out = fresh ? OnDevice<float>::Poisoned(start.values.size())
                                              : OnDevice<float>(start.values);
            OrderedProductArgs args{
                left.data(), k, right.data(), transposed ? k : n, out.data(), n, m, n, k};
            args.sign = sign;
            args.fresh = fresh;
            args.transposed = transposed;
            LaunchOrderedProduct(TestDevice(), args);
            EXPECT_EQ(out.Read(), expected.values) << m << " x " << n << " x " << k;
          });
        }
      }
    }
  }
}

TEST(CudaOrderedProduct, AChainAddsTermByTerm) {
  constexpr int64_t kRows = 5, kCols = 140, kTerms = 37;
  const Matrix a = RandomMatrix(kRows, kTerms, 4);
  const Matrix b = RandomMatrix(kTerms, kCols, 5);
  const Matrix start = RandomMatrix(kRows, kCols, 6);
  Matrix expected = start;
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t t = 0; t < kTerms; ++t) {
      for (int64_t j = 0; j < kCols; ++j) expected.at(i, j) -= a.at(i, t) * b.at(t, j);
    }
  }
  const OnDevice<float> left(a.values), right(b.values), out(start.values);
  OrderedProductArgs args{left.data(), kTerms, right.data(), kCols, out.data(),
                          kCols,       kRows,  kCols,        kTerms};
  args.sign = -1.0f;
  args.chain = true;
  LaunchOrderedProduct(TestDevice(), args);
  EXPECT_EQ(out.Read(), expected.values);
}

TEST(CudaWeightRounding, QuadraticFormsAreTheCpus) {
  for (const int64_t cols : {1, 33, 128, 300}) {
    const Matrix d = RandomMatrix(35, cols, 7);
    const Matrix h = TestHessian(cols + 5, 8);  // rows of h are longer than those of d
    const std::vector<double> expected = QuadraticForm(d, h.row(0), h.cols, 1);
    UnderEverySchedule([&] {
      std::vector<double> actual(expected.size(), NAN);
      ASSERT_TRUE(
          Rounding().QuadraticForm(d.row(0), d.rows, cols, h.row(0), h.cols, actual.data()).ok());
      EXPECT_EQ(actual, expected) << cols;
    });
  }
}

// ---- The factor

TEST(CudaWeightRounding, TheFactorIsTheCpus) {
  for (const int64_t n : {1, 7, 127, 128, 129, 300, 391}) {
    const Matrix h = TestHessian(n, 11);
    Matrix expected = h;
    ASSERT_TRUE(UpperFactorOfInverse(expected, 1));
    UnderEverySchedule([&, &n = n] {
      Matrix actual = h;
      const absl::StatusOr<bool> factored = Rounding().UpperFactorOfInverse(actual.row(0), n);
      ASSERT_TRUE(factored.ok() && *factored);
      EXPECT_EQ(actual.values, expected.values) << n;
    });
  }
}

TEST(CudaWeightRounding, RefusesWhatIsNotPositiveDefinite) {
  Matrix indefinite(2, 2);
  indefinite.values = {1, 3, 3, 1};
  EXPECT_FALSE(Rounding().UpperFactorOfInverse(indefinite.row(0), 2).value());
  // In the first, the middle and the last panel; a NaN; an infinity.
  for (const int64_t at : {0, 150, 299}) {
    for (const float bad : {-1.0f, NAN, INFINITY}) {
      Matrix h = TestHessian(300, 12);
      h.at(at, at) = bad;
      EXPECT_FALSE(Rounding().UpperFactorOfInverse(h.row(0), 300).value()) << at << " " << bad;
    }
  }
  // And what comes after is not touched by it.
  Matrix whole(1, 1);
  whole.values = {4};
  EXPECT_TRUE(Rounding().UpperFactorOfInverse(whole.row(0), 1).value());
  EXPECT_EQ(whole.at(0, 0), 0.5f);
}

// ---- Scales and codes

// The schemes of weights, by what their rounding depends on.
constexpr std::string_view kRounded[] = {"int8",     "int4-g32", "int4-g64-asym", "int3-g64-asym",
                                         "int2-g32", "nf4",      "nf4-dq",        "fp8"};

// Rows that are odd in every way: zeros, one value, tiny and huge ones, a negative tail.
Matrix OddWeight(int64_t rows, int64_t cols, uint32_t seed) {
  Matrix w = RandomMatrix(rows, cols, seed);
  for (int64_t k = 0; k < cols; ++k) {
    if (k < 64) w.at(0, k) = 0.0f;
    w.at(1, k) = k == 5 ? -3.0f : 0.0f;
    w.at(2, k) *= 1e-38f;
    w.at(3, k) *= 1e30f;
    w.at(4, k) = std::fabs(w.at(4, k));
    if (k % 7 == 0) w.at(5, k) = -20.0f;
  }
  return w;
}

TEST(CudaWeightRounding, ClipScalesAndNearestCodesAreTheCpus) {
  const Matrix w = OddWeight(19, 192, 13);
  std::vector<float> importance(192);
  for (size_t k = 0; k < importance.size(); ++k) importance[k] = static_cast<float>(k % 9);
  const GptqOptions options;
  for (const std::string_view name : kRounded) {
    const Scheme& scheme = *FindScheme(name);
    RoundingProblem problem{&w, &scheme, nullptr, nullptr, &options, 1};
    for (const std::vector<float>& by : {std::vector<float>{}, importance}) {
      const float* weights = by.empty() ? nullptr : by.data();
      const GroupScales expected = *MseClipScales(problem, weights);
      UnderEverySchedule([&] {
        RoundingProblem here = problem;
        here.device = &Rounding();
        const absl::StatusOr<GroupScales> actual = MseClipScales(here, weights);
        ASSERT_TRUE(actual.ok()) << actual.status();
        EXPECT_EQ(actual->scale, expected.scale) << name;
        EXPECT_EQ(actual->zero, expected.zero) << name;
      });
    }
    for (const auto round : {RoundRtn, RoundMse}) {
      const QuantizedWeight expected = *round(problem);
      RoundingProblem here = problem;
      here.device = &Rounding();
      const absl::StatusOr<QuantizedWeight> actual = round(here);
      ASSERT_TRUE(actual.ok()) << actual.status();
      ExpectEqualBytes(*actual, expected, name);
    }
  }
}

TEST(CudaWeightRounding, GptqIsTheCpusInEveryBlockAndOrder) {
  const struct {
    int64_t rows, cols;
    int block;
    bool act_order;
    std::string_view scheme;
  } cases[] = {
      {6, 32, 128, true, "int4-g32"},         // one short panel
      {35, 320, 128, true, "int4-g64-asym"},  // panels with a tail, several blocks of rows
      {18, 192, 48, false, "int3-g64"},       // blocks that are no multiple of a warp
      {7, 448, 300, true, "int8"},            // panels within a block, and a partial sum
      {6, 192, 128, true, "nf4-dq"},         {6, 128, 64, true, "fp8"},
  };
  for (const auto& test : cases) {
    const Matrix w = OddWeight(test.rows, test.cols, 14);
    Matrix h = TestHessian(test.cols, 15);
    for (int64_t j = 0; j < test.cols; ++j) h.at(3, j) = h.at(j, 3) = 0.0f;  // a dead column
    GptqOptions options;
    options.block_columns = test.block;
    options.act_order = test.act_order;
    RoundingProblem problem{&w, FindScheme(test.scheme), &h, nullptr, &options, 1};
    const QuantizedWeight expected = *RoundGptq(problem);
    problem.device = &Rounding();
    UnderEverySchedule([&] {
      const absl::StatusOr<QuantizedWeight> actual = RoundGptq(problem);
      ASSERT_TRUE(actual.ok()) << actual.status();
      ExpectEqualBytes(*actual, expected, test.scheme);
    });
  }
}

TEST(CudaWeightRounding, AwqsSearchesAreTheCpus) {
  const Matrix w = RandomMatrix(40, 128, 19);
  const Matrix v = RandomMatrix(9, 128, 20);
  const Matrix x = RandomInputs(200, 128, 21);
  InputStatistics input;
  input.hessian = HessianOf(x);
  for (int64_t j = 0; j < x.cols; ++j) {
    double sum = 0;
    for (int64_t t = 0; t < x.rows; ++t) sum += std::fabs(x.at(t, j));
    input.mean_abs.push_back(static_cast<float>(sum / static_cast<double>(x.rows)));
  }
  AwqOptions awq;
  awq.grid = 4;
  const SmoothQuantOptions smoothquant;
  const GptqOptions gptq;
  const Scheme& scheme = *FindScheme("int4-g64-asym");
  TransformProblem scaling{{&w, &v}, {&scheme, &scheme}, &input, &awq, &smoothquant, 1};
  RoundingProblem clipping{&w, &scheme, &input.hessian, nullptr, &gptq, 1};
  const std::vector<float> factors = *ScaleAwq(scaling);
  ASSERT_FALSE(factors.empty());
  const GroupScales scales = *OutputClipScales(clipping);
  scaling.device = clipping.device = &Rounding();
  EXPECT_EQ(*ScaleAwq(scaling), factors);
  const absl::StatusOr<GroupScales> clipped = OutputClipScales(clipping);
  ASSERT_TRUE(clipped.ok()) << clipped.status();
  EXPECT_EQ(clipped->scale, scales.scale);
  EXPECT_EQ(clipped->zero, scales.zero);
}

TEST(CudaWeightRounding, ARowThatGptqMakesWorseKeepsItsNearestCodes) {
  // The factor of another Hessian compensates in the wrong direction.
  const Matrix w = RandomMatrix(20, 64, 16);
  const Matrix h = TestHessian(64, 17);
  Matrix factor = RandomMatrix(64, 64, 18);
  for (int64_t i = 0; i < 64; ++i) {
    factor.at(i, i) = 0.5f;
    for (int64_t j = 0; j < i; ++j) factor.at(i, j) = 0.0f;
  }
  const Scheme& scheme = *FindScheme("int4-g32");
  const GroupScales scales = AbsmaxScales(w, scheme, 1);
  std::vector<int64_t> order(64);
  std::iota(order.begin(), order.end(), int64_t{0});
  GptqCall call;
  call.weight = {&scheme, w.rows, w.cols, w.row(0)};
  call.scales = {scales.scale.data(), scales.zero.data()};
  call.hessian = h.row(0);
  call.factor = factor.row(0);
  call.order = order.data();
  call.block = 128;
  std::vector<int8_t> codes(w.values.size(), 99);
  ASSERT_TRUE(Rounding().GptqCodes(call, codes.data()).ok());
  std::vector<int8_t> nearest(w.values.size());
  ASSERT_TRUE(Rounding().NearestCodes(call.weight, call.scales, nearest.data()).ok());
  EXPECT_EQ(codes, nearest);
}

}  // namespace
}  // namespace nibble::testing
