// SPDX-License-Identifier: Apache-2.0
// Blocked Cholesky factor and triangular inverse. With J the reversal of indices, J H J = L L^T and
// U = J L^-1 J (engine/quant/cholesky.h).
//
// Tiling: panels of 128 columns, one after the other. The diagonal block of a panel is factored and
// inverted by one thread block in double, its lower triangle in shared memory; everything else is
// products (ordered_product.cu). Limit: the products' multiplications and additions; for a small
// matrix the latency of the diagonal blocks.
#include <cmath>
#include <limits>

#include "kernels/cuda/cholesky.h"
#include "kernels/cuda/ordered_product.h"
#include "kernels/cuda/simt.h"

namespace nibble {
namespace {

constexpr int kPanel = kCholeskyPanel;
static_assert(kCholeskyPanel == kProductTile);
constexpr size_t kTriangleBytes = sizeof(double) * kPanel * (kPanel + 1) / 2;

// The diagonal block (n, n) at `a` becomes L^-1 with A = L L^T, zeros above the diagonal.
struct DiagonalParams {
  float* a;
  int64_t lda;
  int n;            // <= kPanel
  double* inverse;  // scratch (kPanel, kPanel)
  int32_t* failed;
};

struct DiagonalKernel {
  using Params = DiagonalParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int kEdge = 16;  // threads along each side of the triangle

  static NIBBLE_DEVICE int At(int i, int j) { return i * (i + 1) / 2 + j; }

  static NIBBLE_DEVICE void Run(const Params& p) {
    auto* l = reinterpret_cast<double*>(simt::Shared());
    const int n = p.n;
    const int down = simt::Thread() / kEdge;
    const int right = simt::Thread() % kEdge;
    simt::WaitForPreviousKernel();
    for (int i = down; i < n; i += kEdge) {
      for (int j = right; j <= i; j += kEdge) {
        l[At(i, j)] = static_cast<double>(p.a[i * p.lda + j]);
      }
    }
    for (int k = 0; k < n; ++k) {
      simt::SyncThreads();
      const double square = l[At(k, k)];
      if (!(square > 0 && square <= std::numeric_limits<double>::max())) {
        if (simt::Thread() == 0) *p.failed = 1;
        simt::StartNextKernel();
        return;  // the whole block
      }
      const double root = std::sqrt(square);
      simt::SyncThreads();
      for (int i = k + simt::Thread(); i < n; i += kThreads) {
        l[At(i, k)] = i == k ? root : l[At(i, k)] / root;
      }
      simt::SyncThreads();
      for (int i = k + 1 + down; i < n; i += kEdge) {
        for (int j = k + 1 + right; j <= i; j += kEdge) l[At(i, j)] -= l[At(i, k)] * l[At(j, k)];
      }
    }
    simt::SyncThreads();
    // A thread per column.
    for (int j = simt::Thread(); j < n; j += kThreads) {
      double* x = p.inverse + j;
      for (int i = 0; i < n; ++i) {
        double value = 0;
        if (i >= j) {
          const double reciprocal = 1.0 / l[At(i, i)];
          for (int k = j; k < i; ++k) value += l[At(i, k)] * x[k * kPanel];
          value = i == j ? reciprocal : -value * reciprocal;
          x[i * kPanel] = value;
        }
        p.a[i * p.lda + j] = static_cast<float>(value);
      }
    }
    simt::StartNextKernel();
  }
};

// to (rows, cols) = from, or what is read from its end backwards: J A J. May be in place unless
// backwards.
struct CopyParams {
  const float* from;
  int64_t from_stride;
  float* to;
  int64_t to_stride;
  int64_t rows;
  int64_t cols;
  bool backwards;
  bool lower;  // zeros above the diagonal
};

struct CopyKernel {
  using Params = CopyParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t i = simt::BlockX();
    simt::WaitForPreviousKernel();
    for (int64_t j = simt::Thread(); j < p.cols; j += kThreads) {
      const int64_t row = p.backwards ? p.rows - 1 - i : i;
      const int64_t column = p.backwards ? p.cols - 1 - j : j;
      p.to[i * p.to_stride + j] = p.lower && j > i ? 0.0f : p.from[row * p.from_stride + column];
    }
    simt::StartNextKernel();
  }
};

void LaunchCopy(Device& device, const CopyParams& params) {
  if (params.rows == 0 || params.cols == 0) return;
  LaunchShape shape;
  shape.grid_x = static_cast<int>(params.rows);
  shape.threads = CopyKernel::kThreads;
  Launch<CopyKernel>(device.stream(), shape, params);
}

// The scratch: the matrix read backwards, a panel of it, and a diagonal block in double.
int64_t PanelFloats(int64_t n) { return n * kPanel; }

}  // namespace

size_t CholeskyScratchBytes(int64_t n) {
  return sizeof(double) * kPanel * kPanel +
         sizeof(float) * static_cast<size_t>(n * n + PanelFloats(n));
}

void LaunchCholesky(Device& device, const CholeskyArgs& args) {
  const int64_t n = args.n;
  auto* inverse = static_cast<double*>(args.scratch);
  auto* a = reinterpret_cast<float*>(inverse + kPanel * kPanel);
  float* panel = a + n * n;
  device.Zero(args.failed, sizeof(int32_t));
  LaunchCopy(device, {args.h, n, a, n, n, n, /*backwards=*/true, /*lower=*/true});

  // The lower triangle becomes L, except that the diagonal blocks become L_pp^-1. Right-looking.
  for (int64_t p = 0; p < n; p += kPanel) {
    const int64_t width = n - p < kPanel ? n - p : kPanel;
    float* diagonal = a + p * n + p;
    LaunchShape shape;
    shape.threads = DiagonalKernel::kThreads;
    shape.shared_bytes = kTriangleBytes;
    Launch<DiagonalKernel>(device.stream(), shape,
                           {diagonal, n, static_cast<int>(width), inverse, args.failed});
    const int64_t rest = n - p - width;
    float* below = diagonal + width * n;
    LaunchCopy(device, {below, n, panel, width, rest, width, false, false});
    OrderedProductArgs solve;  // L21 = A21 L11^-T
    solve.a = panel;
    solve.lda = width;
    solve.b = diagonal;
    solve.c = below;
    solve.ldb = solve.ldc = n;
    solve.m = rest;
    solve.n = solve.k = width;
    solve.transposed = solve.fresh = true;
    LaunchOrderedProduct(device, solve);
    OrderedProductArgs update;  // A22 -= L21 L21^T
    update.a = update.b = below;
    update.c = below + width;
    update.lda = update.ldb = update.ldc = n;
    update.m = update.n = rest;
    update.k = width;
    update.sign = -1.0f;
    update.transposed = update.lower = true;
    LaunchOrderedProduct(device, update);
  }
  // The inversion reads whole diagonal tiles and tiles to their right.
  LaunchCopy(device, {a, n, a, n, n, n, false, /*lower=*/true});

  // X = L^-1: X_ij = -X_ii sum_k L_ik X_kj, block row after block row.
  for (int64_t p = kPanel; p < n; p += kPanel) {
    const int64_t rows = n - p < kPanel ? n - p : kPanel;
    OrderedProductArgs sum;
    sum.a = a + p * n;
    sum.b = a;
    sum.c = panel;
    sum.lda = sum.ldb = n;
    sum.ldc = p;
    sum.m = rows;
    sum.n = sum.k = p;
    sum.fresh = sum.triangular = true;
    LaunchOrderedProduct(device, sum);
    OrderedProductArgs row;
    row.a = a + p * n + p;
    row.b = panel;
    row.c = a + p * n;
    row.lda = row.ldc = n;
    row.ldb = p;
    row.m = row.k = rows;
    row.n = p;
    row.sign = -1.0f;
    row.fresh = true;
    LaunchOrderedProduct(device, row);
  }
  LaunchCopy(device, {a, n, args.h, n, n, n, /*backwards=*/true, false});
}

}  // namespace nibble
