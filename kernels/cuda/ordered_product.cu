// SPDX-License-Identifier: Apache-2.0
// Products with one order of summation, dot products of rows, and halves of symmetric matrices.
//
// Tiling: a block per 128 x 128 tile of C, 8 x 8 sums per thread in registers; slices of A and B,
// 16 terms at a time, go through registers into two stages of shared memory, A transposed. Limit:
// multiplications and additions, which are not fused, so half of the f32 rate. Dot products: a warp
// per 32 rows, a lane per row; limit: the latency of one chain of additions. Halves: a block per
// row; limit: bytes.
#include "kernels/cuda/ordered_product.h"
#include "kernels/cuda/simt.h"

namespace nibble {
namespace {

constexpr int kTile = kProductTile;
constexpr int kStep = 16;           // terms in a stage
constexpr int kStride = kTile + 4;  // of a term in shared memory
constexpr int kStageFloats = 2 * kStep * kStride;

struct alignas(16) Float4 {
  float v[4];
};

template <bool kChain>
struct OrderedProductKernel {
  using Params = OrderedProductArgs;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int kLoads = kStep * kTile / kThreads;  // per thread, of each operand

  // Element `i` of this thread's share of a slice that lies row by row, `along` terms in a row.
  static NIBBLE_DEVICE int Outer(int i, int along) {
    return (simt::Thread() + i * kThreads) / along;
  }
  static NIBBLE_DEVICE int Inner(int i, int along) {
    return (simt::Thread() + i * kThreads) % along;
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    auto* shared = reinterpret_cast<float*>(simt::Shared());
    const int64_t top = simt::BlockY() * int64_t{kTile};
    const int64_t left = simt::BlockX() * int64_t{kTile};
    if (p.lower && left > top) return;
    const int64_t first = p.triangular ? left : 0;
    // This thread's rows and columns of the tile: 4 from here and 4 from 64 later.
    const int down = simt::Thread() / 16 * 4;
    const int right = simt::Thread() % 16 * 4;
    const auto index = [](int from, int i) { return from + i % 4 + i / 4 * (kTile / 2); };
    simt::WaitForPreviousKernel();

    float a[kLoads], b[kLoads];
    const auto fetch = [&](int64_t k) {
      NIBBLE_UNROLL
      for (int i = 0; i < kLoads; ++i) {
        const int64_t row = top + Outer(i, kStep);
        const int64_t term = k + Inner(i, kStep);
        a[i] = row < p.m && term < p.k ? p.a[row * p.lda + term] : 0.0f;
        const int64_t t = k + (p.transposed ? Inner(i, kStep) : Outer(i, kTile));
        const int64_t column = left + (p.transposed ? Outer(i, kStep) : Inner(i, kTile));
        const int64_t at = p.transposed ? column * p.ldb + t : t * p.ldb + column;
        b[i] = column < p.n && t < p.k ? p.b[at] : 0.0f;
      }
    };
    const auto store = [&](float* stage) {
      NIBBLE_UNROLL
      for (int i = 0; i < kLoads; ++i) {
        stage[Inner(i, kStep) * kStride + Outer(i, kStep)] = a[i];
        const int t = p.transposed ? Inner(i, kStep) : Outer(i, kTile);
        const int column = p.transposed ? Outer(i, kStep) : Inner(i, kTile);
        stage[(kStep + t) * kStride + column] = b[i];
      }
    };
    // Adds the sums to C (or writes them, if they began there) and begins new ones.
    float sum[8][8];
    const auto begin = [&] {
      NIBBLE_UNROLL
      for (int i = 0; i < 8; ++i) {
        NIBBLE_UNROLL
        for (int j = 0; j < 8; ++j) {
          const int64_t row = top + index(down, i);
          const int64_t column = left + index(right, j);
          sum[i][j] = kChain && row < p.m && column < p.n ? p.c[row * p.ldc + column] : 0.0f;
        }
      }
    };
    const auto flush = [&](bool fresh) {
      NIBBLE_UNROLL
      for (int i = 0; i < 8; ++i) {
        NIBBLE_UNROLL
        for (int j = 0; j < 8; ++j) {
          const int64_t row = top + index(down, i);
          const int64_t column = left + index(right, j);
          if (row < p.m && column < p.n) {
            float* c = p.c + row * p.ldc + column;
            *c = kChain ? sum[i][j] : (fresh ? 0.0f : *c) + p.sign * sum[i][j];
          }
          if (!kChain) sum[i][j] = 0.0f;
        }
      }
    };

    begin();
    const int64_t steps = (p.k - first + kStep - 1) / kStep;
    fetch(first);
    store(shared);
    simt::SyncThreads();
    bool fresh = p.fresh;
    for (int64_t step = 0; step < steps; ++step) {
      if (step + 1 < steps) fetch(first + (step + 1) * kStep);
      const float* stage = shared + step % 2 * kStageFloats;
      NIBBLE_UNROLL
      for (int t = 0; t < kStep; ++t) {
        Float4 x[2], y[2];
        NIBBLE_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int offset = t * kStride + half * (kTile / 2);
          x[half] = *reinterpret_cast<const Float4*>(stage + offset + down);
          y[half] = *reinterpret_cast<const Float4*>(stage + kStep * kStride + offset + right);
        }
        NIBBLE_UNROLL
        for (int i = 0; i < 8; ++i) {
          NIBBLE_UNROLL
          for (int j = 0; j < 8; ++j) {
            const float product = x[i / 4].v[i % 4] * y[j / 4].v[j % 4];
            sum[i][j] += kChain ? p.sign * product : product;
          }
        }
      }
      if (step + 1 == steps || (!kChain && (step + 1) % (kPartialTerms / kStep) == 0)) {
        flush(fresh);
        fresh = false;
      }
      if (step + 1 < steps) store(shared + (step + 1) % 2 * kStageFloats);
      simt::SyncThreads();
    }
    simt::StartNextKernel();
  }
};

struct RowDotsKernel {
  using Params = RowDotsArgs;
  static constexpr int kThreads = 32;
  static constexpr int kMinBlocks = 1;
  static constexpr int kRowFloats = simt::kWarp + 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    auto* a = reinterpret_cast<float*>(simt::Shared());  // (32, kRowFloats)
    float* b = a + simt::kWarp * kRowFloats;
    const int64_t top = simt::BlockX() * int64_t{simt::kWarp};
    const int lane = simt::Lane();
    simt::WaitForPreviousKernel();
    double sum = 0;
    for (int64_t left = 0; left < p.cols; left += simt::kWarp) {
      const int count = static_cast<int>(p.cols - left < simt::kWarp ? p.cols - left : simt::kWarp);
      for (int r = 0; r < simt::kWarp && top + r < p.rows; ++r) {
        if (lane < count) {
          a[r * kRowFloats + lane] = p.a[(top + r) * p.cols + left + lane];
          b[r * kRowFloats + lane] = p.b[(top + r) * p.cols + left + lane];
        }
      }
      simt::SyncWarp();
      if (top + lane < p.rows) {
        for (int j = 0; j < count; ++j) {
          sum += static_cast<double>(a[lane * kRowFloats + j]) *
                 static_cast<double>(b[lane * kRowFloats + j]);
        }
      }
      simt::SyncWarp();
    }
    if (top + lane < p.rows) p.sums[top + lane] = p.factor * sum;
    simt::StartNextKernel();
  }
};

struct HalfKernel {
  struct Params {
    float* h;
    int64_t n;
  };
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t i = simt::BlockX();
    float* row = p.h + i * p.n;
    simt::WaitForPreviousKernel();
    for (int64_t j = i + simt::Thread(); j < p.n; j += kThreads)
      row[j] = j == i ? row[j] * 0.5f : 0.0f;
    simt::StartNextKernel();
  }
};

}  // namespace

void LaunchOrderedProduct(Device& device, const OrderedProductArgs& args) {
  if (args.m == 0 || args.n == 0 || args.k == 0) return;
  LaunchShape shape;
  shape.grid_x = static_cast<int>((args.n + kTile - 1) / kTile);
  shape.grid_y = static_cast<int>((args.m + kTile - 1) / kTile);
  shape.threads = OrderedProductKernel<false>::kThreads;
  shape.shared_bytes = sizeof(float) * 2 * kStageFloats;
  if (args.chain) {
    Launch<OrderedProductKernel<true>>(device.stream(), shape, args);
  } else {
    Launch<OrderedProductKernel<false>>(device.stream(), shape, args);
  }
}

void LaunchHalf(Device& device, float* h, int64_t n) {
  if (n == 0) return;
  LaunchShape shape;
  shape.grid_x = static_cast<int>(n);
  shape.threads = HalfKernel::kThreads;
  Launch<HalfKernel>(device.stream(), shape, {h, n});
}

void LaunchRowDots(Device& device, const RowDotsArgs& args) {
  if (args.rows == 0) return;
  LaunchShape shape;
  shape.grid_x = static_cast<int>((args.rows + simt::kWarp - 1) / simt::kWarp);
  shape.threads = RowDotsKernel::kThreads;
  shape.shared_bytes = sizeof(float) * 2 * simt::kWarp * RowDotsKernel::kRowFloats;
  Launch<RowDotsKernel>(device.stream(), shape, args);
}

}  // namespace nibble
