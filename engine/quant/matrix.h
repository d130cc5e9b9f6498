// SPDX-License-Identifier: Apache-2.0
// The little dense algebra that the quantizers need, with results that depend on nothing but the
// operands: every sum runs in one fixed order, multiplications and additions are rounded apart, and
// threads only ever split independent rows or columns. So the bits are the same for any number of
// threads and on any x86 instruction set.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/weight_rounding.h"

namespace nibble {

// Row-major (rows, cols) f32.
struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<float> values;

  Matrix() = default;
  Matrix(int64_t r, int64_t c) : rows(r), cols(c), values(static_cast<size_t>(r * c)) {}
  bool empty() const { return values.empty(); }
  float* row(int64_t i) { return values.data() + i * cols; }
  const float* row(int64_t i) const { return values.data() + i * cols; }
  float& at(int64_t i, int64_t j) { return values[static_cast<size_t>(i * cols + j)]; }
  float at(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * cols + j)]; }
};

// The CPUs that this process may run on, at least 1.
int AvailableThreads();

// Calls body(i) once for every i in [0, count), on up to `threads` threads; returns when all are
// done. Bodies must write to disjoint places.
void ParallelFor(int threads, int64_t count, const std::function<void(int64_t)>& body);

// C += sign * A B for A (m, k), B (k, n), C (m, n), row-major with row strides lda, ldb, ldc; sign
// is 1 or -1. Element (i, j) is the sum over k ascending, in partial sums of 256 terms that are
// added to C one after the other.
void MultiplyAdd(float sign, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m,
                 int64_t k, int64_t n, float* c, int64_t ldc);

// The sum of the squares of all elements, in double.
double SquaredSum(const Matrix& m);

// M (n, n) becomes symmetric: its lower triangle times `factor`, in double, and the mirror of that.
void ScaleAndMirror(Matrix& m, double factor, int threads);

// Every column j multiplied by factors[j].
Matrix ScaleColumns(const Matrix& m, const std::vector<float>& factors, int threads);

// d_i^T H d_i for every row d_i of D (rows, K), with H symmetric (K, K) of row stride ldh: 2 d^T L
// d, L the lower triangle with half of the diagonal, which takes half of the products. The sums of
// L's columns begin at the first row of their block of 128, the last sum is in double.
std::vector<double> QuadraticForm(const Matrix& d, const float* h, int64_t ldh, int threads);
// The same by `device`, unless that is nullptr.
absl::StatusOr<std::vector<double>> QuadraticForm(const Matrix& d, const float* h, int64_t ldh,
                                                  int threads, WeightRounding* device);

}  // namespace nibble
