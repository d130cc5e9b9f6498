// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/cholesky.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace nibble {
namespace {

constexpr int64_t kPanel = 128;

// L of the (n, n) diagonal block at `a`, lower triangle in place, in double inside; false if it is
// not positive definite. `inverse` (n, kPanel) receives L^-1, zeros above the diagonal.
bool FactorDiagonal(float* a, int64_t lda, int64_t n, float* inverse) {
  std::vector<double> l(static_cast<size_t>(n * n), 0.0);
  std::vector<double> x(static_cast<size_t>(n * n), 0.0);
  auto at = [n](std::vector<double>& m, int64_t i, int64_t j) -> double& {
    return m[static_cast<size_t>(i * n + j)];
  };
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double sum = a[i * lda + j];
      for (int64_t k = 0; k < j; ++k) sum -= at(l, i, k) * at(l, j, k);
      if (i != j) {
        at(l, i, j) = sum / at(l, j, j);
      } else if (sum > 0 && std::isfinite(sum)) {
        at(l, i, i) = std::sqrt(sum);
      } else {
        return false;
      }
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    at(x, i, i) = 1.0 / at(l, i, i);
    for (int64_t j = 0; j < i; ++j) {
      double sum = 0;
      for (int64_t k = j; k < i; ++k) sum += at(l, i, k) * at(x, k, j);
      at(x, i, j) = -sum * at(x, i, i);
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) a[i * lda + j] = static_cast<float>(at(l, i, j));
    for (int64_t j = 0; j < n; ++j) inverse[i * kPanel + j] = static_cast<float>(at(x, i, j));
  }
  return true;
}

// In place: the lower triangle of A becomes L with A = L L^T, except that the diagonal blocks
// become L_pp^-1, which is what the inversion needs. Right-looking.
bool FactorLower(Matrix& a, int threads) {
  const int64_t n = a.rows;
  std::vector<float> inverse(kPanel * kPanel);
  std::vector<float> inverse_t(kPanel * kPanel);
  for (int64_t p = 0; p < n; p += kPanel) {
    const int64_t width = std::min(kPanel, n - p);
    if (!FactorDiagonal(a.row(p) + p, n, width, inverse.data())) return false;
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        a.at(p + i, p + j) = inverse[static_cast<size_t>(i * kPanel + j)];
        inverse_t[static_cast<size_t>(j * kPanel + i)] =
            inverse[static_cast<size_t>(i * kPanel + j)];
      }
    }
    const int64_t first = p + width;
    const int64_t rest = n - first;
    const int64_t tiles = (rest + kPanel - 1) / kPanel;
    Matrix panel_t(width, rest);                     // L21^T
    ParallelFor(threads, tiles, [&](int64_t tile) {  // L21 = A21 L11^-T
      const int64_t row = first + tile * kPanel;
      const int64_t rows = std::min(kPanel, n - row);
      Matrix out(rows, width);
      MultiplyAdd(1.0f, a.row(row) + p, n, inverse_t.data(), kPanel, rows, width, width, out.row(0),
                  width);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          a.at(row + i, p + j) = out.at(i, j);
          panel_t.at(j, row - first + i) = out.at(i, j);
        }
      }
    });
    ParallelFor(threads, tiles, [&](int64_t tile) {  // A22 -= L21 L21^T, lower part
      const int64_t row = first + tile * kPanel;
      const int64_t rows = std::min(kPanel, n - row);
      MultiplyAdd(-1.0f, a.row(row) + p, n, panel_t.row(0), rest, rows, width, row + rows - first,
                  a.row(row) + first, n);
    });
  }
  return true;
}

// In place: L (diagonal blocks already inverted) becomes X = L^-1. X_ij = -X_ii sum_k L_ik X_kj.
void InvertLower(Matrix& l, int threads) {
  const int64_t n = l.rows;
  for (int64_t p = kPanel; p < n; p += kPanel) {
    const int64_t rows = std::min(kPanel, n - p);
    Matrix result(rows, p);
    ParallelFor(threads, p / kPanel, [&](int64_t tile) {
      const int64_t column = tile * kPanel;
      Matrix sum(rows, kPanel);
      MultiplyAdd(1.0f, l.row(p) + column, n, l.row(column) + column, n, rows, p - column, kPanel,
                  sum.row(0), kPanel);
      MultiplyAdd(-1.0f, l.row(p) + p, n, sum.row(0), kPanel, rows, rows, kPanel,
                  result.row(0) + column, p);
    });
    for (int64_t i = 0; i < rows; ++i) {
      std::copy(result.row(i), result.row(i) + p, l.row(p + i));
    }
  }
}

}  // namespace

bool UpperFactorOfInverse(Matrix& h, int threads) {
  NIBBLE_CHECK(h.rows == h.cols);
  std::reverse(h.values.begin(), h.values.end());
  if (!FactorLower(h, threads)) return false;
  // The inversion reads whole diagonal blocks and blocks to their right.
  for (int64_t i = 0; i < h.rows; ++i) std::fill(h.row(i) + i + 1, h.row(i) + h.cols, 0.0f);
  InvertLower(h, threads);
  std::reverse(h.values.begin(), h.values.end());
  return true;
}

}  // namespace nibble
