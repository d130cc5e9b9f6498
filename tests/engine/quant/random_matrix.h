// SPDX-License-Identifier: Apache-2.0
// Inputs for the tests of the algorithms: reproducible random matrices, and plain double-precision
// versions of what the algorithms compute in blocks.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "engine/quant/matrix.h"

namespace nibble::testing {

// Standard normal numbers.
inline Matrix RandomMatrix(int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Matrix result(rows, cols);
  for (float& value : result.values) value = normal(generator);
  return result;
}

// Correlated inputs, some features much larger than others, as activations are.
inline Matrix RandomInputs(int64_t tokens, int64_t features, uint32_t seed) {
  Matrix x = RandomMatrix(tokens, features, seed);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < features; ++j) {
      if (j > 0) x.at(t, j) += 0.6f * x.at(t, j - 1);
    }
    for (int64_t j = 0; j < features; ++j) {
      if (j % 17 == 3) x.at(t, j) *= 12.0f;
    }
  }
  return x;
}

// 2/n sum x x^T.
inline Matrix HessianOf(const Matrix& x) {
  Matrix h(x.cols, x.cols);
  for (int64_t i = 0; i < x.cols; ++i) {
    for (int64_t j = 0; j < x.cols; ++j) {
      double sum = 0;
      for (int64_t t = 0; t < x.rows; ++t) {
        sum += static_cast<double>(x.at(t, i)) * static_cast<double>(x.at(t, j));
      }
      h.at(i, j) = static_cast<float>(2 * sum / static_cast<double>(x.rows));
    }
  }
  return h;
}

// d H d^T of one row.
inline double Objective(const float* w, const float* q, const Matrix& h) {
  double sum = 0;
  for (int64_t i = 0; i < h.rows; ++i) {
    for (int64_t j = 0; j < h.rows; ++j) {
      sum += (static_cast<double>(w[i]) - static_cast<double>(q[i])) *
             static_cast<double>(h.at(i, j)) *
             (static_cast<double>(w[j]) - static_cast<double>(q[j]));
    }
  }
  return sum;
}

}  // namespace nibble::testing
