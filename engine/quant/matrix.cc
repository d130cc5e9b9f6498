// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/matrix.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

namespace nibble {
namespace {

constexpr int64_t kTileRows = 6;
constexpr int64_t kTileCols = 32;
constexpr int64_t kDepth = 256;        // terms of one partial sum
constexpr int64_t kFormColumns = 128;  // of a block of QuadraticForm

// Sixteen floats; the compiler maps them to whatever registers the target has.
typedef float Vec __attribute__((vector_size(64), aligned(4), may_alias));

// R rows of C (R, 32) += sign * A (R, k) * packed B (k, 32).
template <int R>
[[gnu::always_inline]] inline void Tile(float sign, const float* a, int64_t lda,
                                        const float* packed, int64_t k, float* c, int64_t ldc) {
  Vec acc[R][2] = {};
  for (int64_t t = 0; t < k; ++t) {
    const Vec b0 = *reinterpret_cast<const Vec*>(packed + t * kTileCols);
    const Vec b1 = *reinterpret_cast<const Vec*>(packed + t * kTileCols + 16);
    for (int r = 0; r < R; ++r) {
      const float x = a[r * lda + t];
      acc[r][0] += x * b0;
      acc[r][1] += x * b1;
    }
  }
  for (int r = 0; r < R; ++r) {
    Vec* out = reinterpret_cast<Vec*>(c + r * ldc);
    out[0] += sign * acc[r][0];
    out[1] += sign * acc[r][1];
  }
}

[[gnu::always_inline]] inline void Rows(int64_t rows, float sign, const float* a, int64_t lda,
                                        const float* packed, int64_t k, float* c, int64_t ldc) {
  switch (rows) {
    case 6:
      return Tile<6>(sign, a, lda, packed, k, c, ldc);
    case 5:
      return Tile<5>(sign, a, lda, packed, k, c, ldc);
    case 4:
      return Tile<4>(sign, a, lda, packed, k, c, ldc);
    case 3:
      return Tile<3>(sign, a, lda, packed, k, c, ldc);
    case 2:
      return Tile<2>(sign, a, lda, packed, k, c, ldc);
    default:
      return Tile<1>(sign, a, lda, packed, k, c, ldc);
  }
}

[[gnu::always_inline]] inline void MultiplyAddBody(float sign, const float* a, int64_t lda,
                                                   const float* b, int64_t ldb, int64_t m,
                                                   int64_t k, int64_t n, float* c, int64_t ldc) {
  alignas(64) float packed[kDepth * kTileCols];
  alignas(64) float edge[kTileRows * kTileCols];
  for (int64_t j = 0; j < n; j += kTileCols) {
    const int64_t width = std::min(kTileCols, n - j);
    for (int64_t t = 0; t < k; t += kDepth) {
      const int64_t depth = std::min(kDepth, k - t);
      for (int64_t p = 0; p < depth; ++p) {
        float* to = packed + p * kTileCols;
        std::memcpy(to, b + (t + p) * ldb + j, static_cast<size_t>(width) * sizeof(float));
        std::fill(to + width, to + kTileCols, 0.0f);
      }
      for (int64_t i = 0; i < m; i += kTileRows) {
        const int64_t rows = std::min(kTileRows, m - i);
        const float* from = a + i * lda + t;
        if (width == kTileCols) {
          Rows(rows, sign, from, lda, packed, depth, c + i * ldc + j, ldc);
          continue;
        }
        const size_t bytes = static_cast<size_t>(width) * sizeof(float);
        for (int64_t r = 0; r < rows; ++r) {
          std::memcpy(edge + r * kTileCols, c + (i + r) * ldc + j, bytes);
        }
        Rows(rows, sign, from, lda, packed, depth, edge, kTileCols);
        for (int64_t r = 0; r < rows; ++r) {
          std::memcpy(c + (i + r) * ldc + j, edge + r * kTileCols, bytes);
        }
      }
    }
  }
}

using MultiplyAddFn = void (*)(float, const float*, int64_t, const float*, int64_t, int64_t,
                               int64_t, int64_t, float*, int64_t);

void MultiplyAddPlain(float sign, const float* a, int64_t lda, const float* b, int64_t ldb,
                      int64_t m, int64_t k, int64_t n, float* c, int64_t ldc) {
  MultiplyAddBody(sign, a, lda, b, ldb, m, k, n, c, ldc);
}

#if defined(__x86_64__)
// The same arithmetic in wider registers: no fused multiply-add, so the same bits.
__attribute__((target("avx2"))) void MultiplyAddAvx2(float sign, const float* a, int64_t lda,
                                                     const float* b, int64_t ldb, int64_t m,
                                                     int64_t k, int64_t n, float* c, int64_t ldc) {
  MultiplyAddBody(sign, a, lda, b, ldb, m, k, n, c, ldc);
}
__attribute__((target("avx512f"))) void MultiplyAddAvx512(float sign, const float* a, int64_t lda,
                                                          const float* b, int64_t ldb, int64_t m,
                                                          int64_t k, int64_t n, float* c,
                                                          int64_t ldc) {
  MultiplyAddBody(sign, a, lda, b, ldb, m, k, n, c, ldc);
}
MultiplyAddFn PickMultiplyAdd() {
  if (__builtin_cpu_supports("avx512f")) return MultiplyAddAvx512;
  if (__builtin_cpu_supports("avx2")) return MultiplyAddAvx2;
  return MultiplyAddPlain;
}
#else
MultiplyAddFn PickMultiplyAdd() { return MultiplyAddPlain; }
#endif

}  // namespace

int AvailableThreads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

void ParallelFor(int threads, int64_t count, const std::function<void(int64_t)>& body) {
  const int64_t workers = std::min<int64_t>(threads, count);
  if (workers <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::atomic<int64_t> next{0};
  auto work = [&next, &body, count] {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) body(i);
  };
  std::vector<std::thread> pool;
  pool.reserve(static_cast<size_t>(workers - 1));
  for (int64_t t = 1; t < workers; ++t) pool.emplace_back(work);
  work();
  for (std::thread& thread : pool) thread.join();
}

void MultiplyAdd(float sign, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m,
                 int64_t k, int64_t n, float* c, int64_t ldc) {
  static const MultiplyAddFn run = PickMultiplyAdd();
  run(sign, a, lda, b, ldb, m, k, n, c, ldc);
}

double SquaredSum(const Matrix& m) {
  double sum = 0;
  for (const float v : m.values) sum += static_cast<double>(v) * static_cast<double>(v);
  return sum;
}

void ScaleAndMirror(Matrix& m, double factor, int threads) {
  constexpr int64_t kTile = 64;  // so that both sides of the mirror stay in the cache
  ParallelFor(threads, (m.rows + kTile - 1) / kTile, [&](int64_t tile) {
    const int64_t end = std::min((tile + 1) * kTile, m.rows);
    for (int64_t left = 0; left < end; left += kTile) {
      for (int64_t i = tile * kTile; i < end; ++i) {
        for (int64_t j = left; j < std::min(left + kTile, i + 1); ++j) {
          m.at(i, j) = static_cast<float>(static_cast<double>(m.at(i, j)) * factor);
          m.at(j, i) = m.at(i, j);
        }
      }
    }
  });
}

Matrix ScaleColumns(const Matrix& m, const std::vector<float>& factors, int threads) {
  Matrix result(m.rows, m.cols);
  ParallelFor(threads, m.rows, [&](int64_t i) {
    const float* from = m.row(i);
    float* to = result.row(i);
    for (int64_t j = 0; j < m.cols; ++j) to[j] = from[j] * factors[static_cast<size_t>(j)];
  });
  return result;
}

namespace {

// L of QuadraticForm where it is not H: the first kDepth rows of each block of columns, one block
// after the other, (rows, width).
std::vector<float> FirstRowsOfHalf(const float* h, int64_t ldh, int64_t k) {
  std::vector<float> first;
  first.reserve(static_cast<size_t>(k * std::min(k, kDepth)));
  for (int64_t j = 0; j < k; j += kFormColumns) {
    const int64_t width = std::min(kFormColumns, k - j);
    for (int64_t t = 0; t < std::min(kDepth, k - j); ++t) {
      const float* from = h + (j + t) * ldh + j;
      const int64_t below = std::min(t, width);  // of the diagonal
      first.insert(first.end(), from, from + below);
      if (t < width) first.push_back(from[t] * 0.5f);
      first.resize(first.size() + static_cast<size_t>(std::max<int64_t>(0, width - t - 1)));
    }
  }
  return first;
}

// product (rows, k) = D L for D (rows, k).
void MultiplyByHalf(const float* d, int64_t rows, int64_t k, const float* h, int64_t ldh,
                    const float* first, float* product) {
  for (int64_t j = 0; j < k; j += kFormColumns) {
    const int64_t width = std::min(kFormColumns, k - j);
    const int64_t depth = std::min(kDepth, k - j);
    MultiplyAdd(1.0f, d + j, k, first, width, rows, depth, width, product + j, k);
    MultiplyAdd(1.0f, d + j + depth, k, h + (j + depth) * ldh + j, ldh, rows, k - j - depth, width,
                product + j, k);
    first += depth * width;
  }
}

}  // namespace

std::vector<double> QuadraticForm(const Matrix& d, const float* h, int64_t ldh, int threads) {
  constexpr int64_t kRows = 48;
  const std::vector<float> first_rows = FirstRowsOfHalf(h, ldh, d.cols);
  std::vector<double> result(static_cast<size_t>(d.rows));
  ParallelFor(threads, (d.rows + kRows - 1) / kRows, [&](int64_t tile) {
    const int64_t first = tile * kRows;
    const int64_t rows = std::min(kRows, d.rows - first);
    Matrix product(rows, d.cols);
    MultiplyByHalf(d.row(first), rows, d.cols, h, ldh, first_rows.data(), product.row(0));
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (int64_t j = 0; j < d.cols; ++j) {
        sum += static_cast<double>(product.at(r, j)) * static_cast<double>(d.at(first + r, j));
      }
      result[static_cast<size_t>(first + r)] = 2 * sum;
    }
  });
  return result;
}

absl::StatusOr<std::vector<double>> QuadraticForm(const Matrix& d, const float* h, int64_t ldh,
                                                  int threads, WeightRounding* device) {
  if (device == nullptr) return QuadraticForm(d, h, ldh, threads);
  std::vector<double> result(static_cast<size_t>(d.rows));
  absl::Status status = device->QuadraticForm(d.row(0), d.rows, d.cols, h, ldh, result.data());
  if (!status.ok()) return status;
  return result;
}

}  // namespace nibble
