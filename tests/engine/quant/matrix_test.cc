// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/matrix.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>

#include "tests/engine/quant/random_matrix.h"

namespace nibble {
namespace {

using testing::Objective;
using testing::RandomMatrix;

// The documented order of additions, one element at a time.
float Reference(float sign, const Matrix& a, const Matrix& b, float c, int64_t i, int64_t j) {
  for (int64_t t = 0; t < a.cols; t += 256) {
    float sum = 0;
    for (int64_t k = t; k < std::min<int64_t>(t + 256, a.cols); ++k) sum += a.at(i, k) * b.at(k, j);
    c += sign * sum;
  }
  return c;
}

TEST(MultiplyAdd, HasTheDocumentedBitsForOddShapes) {
  for (const int64_t m : {1, 5, 6, 13}) {
    for (const int64_t k : {1, 31, 256, 300, 513}) {
      for (const int64_t n : {1, 16, 31, 32, 33, 70}) {
        const Matrix a = RandomMatrix(m, k, 1);
        const Matrix b = RandomMatrix(k, n, 2);
        const Matrix c = RandomMatrix(m, n, 3);
        for (const float sign : {1.0f, -1.0f}) {
          Matrix out = c;
          MultiplyAdd(sign, a.row(0), k, b.row(0), n, m, k, n, out.row(0), n);
          for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < n; ++j) {
              ASSERT_EQ(out.at(i, j), Reference(sign, a, b, c.at(i, j), i, j))
                  << m << "x" << k << "x" << n << " at " << i << "," << j;
            }
          }
        }
      }
    }
  }
}

TEST(MultiplyAdd, LeavesTheRestOfAWiderMatrixAlone) {
  const Matrix a = RandomMatrix(3, 4, 1);
  const Matrix b = RandomMatrix(4, 50, 2);
  Matrix c(3, 60);
  MultiplyAdd(1.0f, a.row(0), 4, b.row(0), 50, 3, 4, 41, c.row(0), 60);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_NE(c.at(i, 40), 0.0f);
    for (int64_t j = 41; j < 60; ++j) EXPECT_EQ(c.at(i, j), 0.0f);
  }
}

TEST(ParallelFor, CallsEveryIndexOnce) {
  for (const int threads : {1, 2, 7}) {
    std::vector<std::atomic<int>> calls(100);
    ParallelFor(threads, 100, [&](int64_t i) { ++calls[static_cast<size_t>(i)]; });
    for (const std::atomic<int>& count : calls) EXPECT_EQ(count, 1);
  }
}

TEST(ScaleAndMirror, MakesTheLowerTriangleSymmetricForAnyThreads) {
  for (const int64_t n : {1, 64, 65, 200}) {
    const Matrix m = RandomMatrix(n, n, 6);
    for (const int threads : {1, 3}) {
      Matrix symmetric = m;
      ScaleAndMirror(symmetric, 0.7, threads);
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          const auto expected = static_cast<float>(static_cast<double>(m.at(i, j)) * 0.7);
          ASSERT_EQ(symmetric.at(i, j), expected);
          ASSERT_EQ(symmetric.at(j, i), expected);
        }
      }
    }
  }
}

TEST(QuadraticForm, IsDhDPerRowAndTheSameForAnyThreads) {
  for (const int64_t cols : {1, 40, 129, 300}) {
    const Matrix d = RandomMatrix(101, cols, 4);
    const Matrix h = testing::HessianOf(RandomMatrix(cols + 20, cols, 5));
    const std::vector<float> zeros(static_cast<size_t>(cols), 0.0f);
    const std::vector<double> one = QuadraticForm(d, h.row(0), cols, 1);
    for (int64_t r = 0; r < d.rows; ++r) {
      const double expected = Objective(d.row(r), zeros.data(), h);
      EXPECT_NEAR(one[static_cast<size_t>(r)], expected, 1e-5 * expected) << cols;
    }
    EXPECT_EQ(QuadraticForm(d, h.row(0), cols, 2), one);
    EXPECT_EQ(QuadraticForm(d, h.row(0), cols, 7), one);
  }
}

TEST(QuadraticForm, ReadsTheLowerTriangle) {
  const Matrix d = RandomMatrix(7, 300, 4);
  Matrix h = testing::HessianOf(RandomMatrix(320, 300, 5));
  const std::vector<double> expected = QuadraticForm(d, h.row(0), 300, 1);
  for (int64_t i = 0; i < 300; ++i) {
    for (int64_t j = i + 1; j < 300; ++j) h.at(i, j) = NAN;
  }
  EXPECT_EQ(QuadraticForm(d, h.row(0), 300, 1), expected);
}

}  // namespace
}  // namespace nibble
