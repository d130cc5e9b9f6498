// SPDX-License-Identifier: Apache-2.0
// h += x^T x, the lower triangle.
//
// Tiling: a block per 128 x 128 tile on or below the diagonal, 8 x 8 sums per thread in registers;
// the two slices of x, 16 rows at a time, come through three stages of asynchronous copies. Limit:
// f32 multiply-adds, dim^2 / 2 of them a row, 16 for each vector that is read from shared memory.
#include "kernels/cuda/hessian.h"
#include "kernels/cuda/simt.h"

namespace nibble {
namespace {

constexpr int kTile = 128;
constexpr int kStep = 16;  // rows of x in a stage
constexpr int kStages = 3;
constexpr int kStageFloats = 2 * kStep * kTile;

struct alignas(16) Float4 {
  float v[4];
};

// Vectors: dim is a multiple of 4, so that a vector is whole or outside and aligned.
template <bool kVectors>
struct HessianKernel {
  using Params = HessianArgs;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  // Rows [first, first + kStep) of the columns from `column`; zeros outside of x.
  static NIBBLE_DEVICE void Fetch(const Params& p, int64_t first, int64_t column, float* to) {
    NIBBLE_UNROLL
    for (int i = 0; i < kStep * kTile / 4 / kThreads; ++i) {
      const int vector = simt::Thread() + i * kThreads;
      const int64_t r = first + vector / (kTile / 4);
      const int64_t k = column + vector % (kTile / 4) * 4;
      if constexpr (kVectors) {
        const bool inside = r < p.rows && k < p.dim;
        simt::CopyAsync16(to + 4 * vector, inside ? p.x + r * p.dim + k : p.x, inside);
      } else {
        for (int e = 0; e < 4; ++e) {
          const bool inside = r < p.rows && k + e < p.dim;
          to[4 * vector + e] = inside ? p.x[r * p.dim + k + e] : 0.0f;
        }
      }
    }
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    auto* shared = reinterpret_cast<float*>(simt::Shared());
    const TriangleTile tile = TriangleTileAt(simt::BlockX());
    const int64_t top = tile.row * kTile;
    const int64_t left = tile.column * kTile;
    // This thread's rows and columns of the tile: 4 from here and 4 from 64 later.
    const int down = simt::Thread() / 16 * 4;
    const int right = simt::Thread() % 16 * 4;
    const auto index = [](int from, int i) { return from + i % 4 + i / 4 * (kTile / 2); };
    simt::WaitForPreviousKernel();

    float sum[8][8];
    NIBBLE_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int64_t row = top + index(down, i);
      NIBBLE_UNROLL
      for (int j = 0; j < 8; ++j) {
        const int64_t column = left + index(right, j);
        sum[i][j] = row < p.dim && column <= row ? p.h[row * p.dim + column] : 0.0f;
      }
    }

    const int64_t steps = (p.rows + kStep - 1) / kStep;
    const auto fetch = [&](int64_t step) {
      if (step < steps) {
        float* stage = shared + step % kStages * kStageFloats;
        Fetch(p, step * kStep, top, stage);
        Fetch(p, step * kStep, left, stage + kStep * kTile);
      }
      simt::CommitCopies();
    };
    for (int s = 0; s + 1 < kStages; ++s) fetch(s);
    for (int64_t step = 0; step < steps; ++step) {
      simt::WaitCopies<kStages - 2>();
      simt::SyncThreads();
      fetch(step + kStages - 1);
      const float* a = shared + step % kStages * kStageFloats;
      const float* b = a + kStep * kTile;
      NIBBLE_UNROLL
      for (int r = 0; r < kStep; ++r) {
        Float4 x[2], y[2];
        NIBBLE_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int offset = r * kTile + half * (kTile / 2);
          x[half] = *reinterpret_cast<const Float4*>(a + offset + down);
          y[half] = *reinterpret_cast<const Float4*>(b + offset + right);
        }
        NIBBLE_UNROLL
        for (int i = 0; i < 8; ++i) {
          NIBBLE_UNROLL
          for (int j = 0; j < 8; ++j) {
            sum[i][j] = std::fma(x[i / 4].v[i % 4], y[j / 4].v[j % 4], sum[i][j]);
          }
        }
      }
    }

    NIBBLE_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int64_t row = top + index(down, i);
      NIBBLE_UNROLL
      for (int j = 0; j < 8; ++j) {
        const int64_t column = left + index(right, j);
        if (row < p.dim && column <= row) p.h[row * p.dim + column] = sum[i][j];
      }
    }
    simt::StartNextKernel();
  }
};

}  // namespace

void LaunchHessian(Device& device, const HessianArgs& args) {
  if (args.rows == 0) return;
  const int64_t tiles = (args.dim + kTile - 1) / kTile;
  LaunchShape shape;
  shape.grid_x = static_cast<int>(tiles * (tiles + 1) / 2);
  shape.threads = HessianKernel<true>::kThreads;
  shape.shared_bytes = sizeof(float) * kStages * kStageFloats;
  if (args.dim % 4 == 0) {
    Launch<HessianKernel<true>>(device.stream(), shape, args);
  } else {
    Launch<HessianKernel<false>>(device.stream(), shape, args);
  }
}

}  // namespace nibble
