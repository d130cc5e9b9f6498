// SPDX-License-Identifier: Apache-2.0
// f32 products whose sums have the order of engine/quant/matrix.cc, multiplications and additions
// rounded apart: the same bits as the quantizer's on the CPU.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.h"

namespace nibble {

// Terms of one partial sum, as in engine/quant/matrix.cc.
inline constexpr int64_t kPartialTerms = 256;
// Rows and columns of an output tile.
inline constexpr int64_t kProductTile = 128;

// C += sign * A B, row-major. Element (i, j) is the sum over k ascending, in partial sums of
// kPartialTerms terms that are added to C one after the other.
struct OrderedProductArgs {
  const float* a;  // (m, k), row stride lda
  int64_t lda;
  const float* b;  // (k, n), row stride ldb; transposed: (n, k)
  int64_t ldb;
  float* c;  // (m, n), row stride ldc; must not overlap A or B
  int64_t ldc;
  int64_t m;
  int64_t n;
  int64_t k;
  float sign = 1.0f;        // or -1
  bool transposed = false;  // B is given as its transpose
  bool fresh = false;       // C counts as zeros
  bool lower = false;       // tiles above the diagonal of C are left as they are
  // Sums of a tile of columns begin at k = its first column: for a B that is lower triangular.
  bool triangular = false;
  bool chain = false;  // sign * a_ik b_kj is added to C term by term instead of in partial sums
};
void LaunchOrderedProduct(Device& device, const OrderedProductArgs& args);

// h (n, n), symmetric, becomes its lower triangle with half of the diagonal, zeros above.
void LaunchHalf(Device& device, float* h, int64_t n);

// sums[i] = factor * sum over j ascending of a_ij * b_ij, in double; a and b (rows, cols).
struct RowDotsArgs {
  const float* a;
  const float* b;
  int64_t rows;
  int64_t cols;
  double* sums;
  double factor = 1.0;
};
void LaunchRowDots(Device& device, const RowDotsArgs& args);

}  // namespace nibble
