// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/cholesky.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/engine/quant/random_matrix.h"

namespace nibble {
namespace {

using testing::HessianOf;
using testing::RandomInputs;

Matrix Damped(int64_t n, uint32_t seed) {
  Matrix h = HessianOf(RandomInputs(2 * n + 3, n, seed));
  double mean = 0;
  for (int64_t i = 0; i < n; ++i) mean += static_cast<double>(h.at(i, i)) / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) h.at(i, i) += static_cast<float>(0.01 * mean);
  return h;
}

TEST(UpperFactorOfInverse, OfADiagonalIsTheInverseRoot) {
  Matrix h(3, 3);
  h.at(0, 0) = 4;
  h.at(1, 1) = 16;
  h.at(2, 2) = 0.25f;
  ASSERT_TRUE(UpperFactorOfInverse(h, 1));
  EXPECT_EQ(h.values, (std::vector<float>{0.5f, 0, 0, 0, 0.25f, 0, 0, 0, 2}));
}

TEST(UpperFactorOfInverse, WorkedByHand) {
  // H = [[5, 2], [2, 1]], H^-1 = [[1, -2], [-2, 5]] = U^T U with U = [[1, -2], [0, 1]].
  Matrix h(2, 2);
  h.values = {5, 2, 2, 1};
  ASSERT_TRUE(UpperFactorOfInverse(h, 1));
  EXPECT_EQ(h.values, (std::vector<float>{1, -2, 0, 1}));
}

TEST(UpperFactorOfInverse, IsUpperAndGivesTheIdentityBack) {
  for (const int64_t n : {1, 7, 128, 129, 300}) {
    const Matrix h = Damped(n, 11);
    Matrix u = h;
    ASSERT_TRUE(UpperFactorOfInverse(u, 2));
    double error = 0;  // || U^T U H - I ||_F
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < i; ++j) ASSERT_EQ(u.at(i, j), 0.0f);
    }
    std::vector<double> inverse(static_cast<size_t>(n * n), 0.0);
    for (int64_t k = 0; k < n; ++k) {
      for (int64_t i = k; i < n; ++i) {
        for (int64_t j = k; j < n; ++j) {
          inverse[static_cast<size_t>(i * n + j)] +=
              static_cast<double>(u.at(k, i)) * static_cast<double>(u.at(k, j));
        }
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = i == j ? -1.0 : 0.0;
        for (int64_t k = 0; k < n; ++k) {
          sum += inverse[static_cast<size_t>(i * n + k)] * static_cast<double>(h.at(k, j));
        }
        error += sum * sum;
      }
    }
    EXPECT_LT(std::sqrt(error) / static_cast<double>(n), 1e-3) << n;
  }
}

TEST(UpperFactorOfInverse, HasTheSameBitsForAnyThreads) {
  const Matrix h = Damped(300, 12);
  Matrix one = h;
  ASSERT_TRUE(UpperFactorOfInverse(one, 1));
  for (const int threads : {2, 7}) {
    Matrix other = h;
    ASSERT_TRUE(UpperFactorOfInverse(other, threads));
    EXPECT_EQ(other.values, one.values);
  }
}

TEST(UpperFactorOfInverse, RefusesWhatIsNotPositiveDefinite) {
  Matrix singular(2, 2);
  singular.values = {1, 1, 1, 1};
  EXPECT_FALSE(UpperFactorOfInverse(singular, 1));
  Matrix indefinite(2, 2);
  indefinite.values = {1, 3, 3, 1};
  EXPECT_FALSE(UpperFactorOfInverse(indefinite, 1));
  Matrix broken(2, 2);
  broken.values = {1, 0, 0, NAN};
  EXPECT_FALSE(UpperFactorOfInverse(broken, 1));
}

}  // namespace
}  // namespace nibble
