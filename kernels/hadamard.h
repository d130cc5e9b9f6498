// SPDX-License-Identifier: Apache-2.0
// Walsh-Hadamard transforms of rows: the matrices, and the definition that every kernel follows to
// the bit. Standard library only.
//
// A row of n = base * 2^k elements, base 1, 12, 20 or 28, is multiplied by H = B (x) S, the
// Kronecker product of a Hadamard matrix of order `base` and Sylvester's of order 2^k: element
// b * 2^k + j of the row is row b of B and row j of S. H H^T = n I. S is symmetric; B is too for
// base 28, not for 12 and 20, so the inverse is H^T / n.
// B: Paley 1933, "On orthogonal matrices", as construction I for 12 = 11 + 1 and 20 = 19 + 1, and
// construction II for 28 = 2 (13 + 1).
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "kernels/dtype.h"

namespace nibble {

inline constexpr int kMaxHadamardBase = 28;
inline constexpr int64_t kMaxHadamardDim = 32768;

struct HadamardShape {
  int base = 0;       // 0: no transform of this length
  int64_t power = 0;  // 2^k
};

// The factors of n, with the smallest base.
constexpr HadamardShape HadamardShapeOf(int64_t n) {
  if (n < 1 || n > kMaxHadamardDim) return {};
  for (const int base : {1, 12, 20, 28}) {
    if (n % base == 0 && std::has_single_bit(static_cast<uint64_t>(n / base))) {
      return {base, n / base};
    }
  }
  return {};
}

// Bit c of element r: whether B[r][c] is -1. `base` as in HadamardShape.
constexpr std::array<uint32_t, kMaxHadamardBase> HadamardBase(int base) {
  std::array<uint32_t, kMaxHadamardBase> negative{};
  if (base == 1) return negative;
  const int q = base == 28 ? 13 : base - 1;
  // 1 for a square modulo q, -1 for others, 0 for 0.
  const auto character = [q](int x) {
    x = (x % q + q) % q;
    if (x == 0) return 0;
    for (int y = 1; y < q; ++y) {
      if (y * y % q == x) return 1;
    }
    return -1;
  };
  for (int r = 0; r < base; ++r) {
    for (int c = 0; c < base; ++c) {
      bool minus = false;
      if (base != 28) {
        // I + [[0, 1], [-1, Q]] with Q[i][j] = character(i - j).
        minus = r > 0 && (c == 0 || (r != c && character(r - c) < 0));
      } else {
        // C = [[0, 1], [1, Q]]: its 0 becomes [[1, -1], [-1, -1]], +-1 becomes +-[[1, 1], [1, -1]].
        const int i = r / 2, j = c / 2;
        const int sign = i == j ? 0 : (i == 0 || j == 0 ? 1 : character(i - j));
        const bool corner = r % 2 == 1 && c % 2 == 1;
        minus = sign == 0 ? r % 2 == 1 || c % 2 == 1 : corner != (sign < 0);
      }
      if (minus) negative[static_cast<size_t>(r)] |= 1u << c;
    }
  }
  return negative;
}

// row = scale * H row, in place. Steps of S in ascending order of distance, one rounding each; then
// B, its sums in ascending order of the column.
inline void HadamardRow(float* row, int64_t n, float scale) {
  const HadamardShape shape = HadamardShapeOf(n);
  for (int64_t step = 1; step < shape.power; step *= 2) {
    for (int64_t i = 0; i < n; ++i) {
      if ((i & step) != 0) continue;
      const float low = row[i], high = row[i + step];
      row[i] = low + high;
      row[i + step] = low - high;
    }
  }
  const auto negative = HadamardBase(shape.base);
  for (int64_t j = 0; j < shape.power; ++j) {
    float column[kMaxHadamardBase] = {};
    for (int b = 0; b < shape.base; ++b) {
      for (int c = 0; c < shape.base; ++c) {
        const float x = row[c * shape.power + j];
        const bool minus = (negative[static_cast<size_t>(b)] >> c & 1u) != 0;
        column[b] = c == 0 ? (minus ? -x : x) : (minus ? column[b] - x : column[b] + x);
      }
    }
    for (int b = 0; b < shape.base; ++b) row[b * shape.power + j] = column[b] * scale;
  }
}

}  // namespace nibble
