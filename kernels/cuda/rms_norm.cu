// SPDX-License-Identifier: Apache-2.0
// Residual add, RMS norm, and the norm's output in every format that is wanted.
//
// Tiling: a block per row, the row in shared memory as f32 between the two passes. Limit: bytes
// (residual read and written, delta read, output written, once each); with few rows, the latency of
// one launch.
#include <cmath>

#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/row_writer.h"

namespace nibble {
namespace {

struct RmsNormKernel {
  using Params = RmsNormArgs;
  static constexpr int kThreads = 512;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    auto* row = reinterpret_cast<float*>(simt::Shared());  // (dim)
    float* partial = row + p.dim;                          // (warps)
    const int64_t i = simt::BlockX();
    simt::WaitForPreviousKernel();
    const int64_t from = p.rows != nullptr ? p.rows[i] : i;
    float* x = p.x + from * p.dim;
    float squares = 0.0f;
    for (int64_t k = simt::Thread(); k < p.dim; k += simt::Threads()) {
      float h = x[k];
      if (p.delta.data != nullptr) {
        h += LoadFloat(p.delta.data, p.delta.dtype, from * p.dim + k);
        x[k] = h;
      }
      row[k] = h;
      squares = std::fma(h, h, squares);
    }
    squares = simt::WarpSum(squares);
    if (simt::Lane() == 0) partial[simt::WarpIndex()] = squares;
    simt::SyncThreads();
    float total = 0.0f;
    for (int w = 0; w < simt::Threads() / simt::kWarp; ++w) total += partial[w];
    const float inverse = 1.0f / std::sqrt(total / static_cast<float>(p.dim) + p.eps);
    for (int64_t k = simt::Thread(); k < p.dim; k += simt::Threads()) {
      const float y = row[k] * inverse * (p.weight_offset + p.weight[k]);
      row[k] = y;
      WriteRowFloat(p.out, i, k, y);
    }
    if (WantsCodes(p.out)) {
      simt::SyncThreads();
      WriteRowCodes(p.out, i, row);
    }
    simt::StartNextKernel();
  }
};

}  // namespace

void LaunchRmsNorm(Device& device, const RmsNormArgs& args) {
  if (args.num_rows == 0) return;
  LaunchShape shape;
  shape.grid_x = static_cast<int>(args.num_rows);
  shape.threads = args.dim >= 2048 ? 512 : args.dim >= 512 ? 256 : 64;
  shape.shared_bytes = static_cast<size_t>(args.dim + shape.threads / simt::kWarp) * sizeof(float);
  Launch<RmsNormKernel>(device.stream(), shape, args);
}

}  // namespace nibble
