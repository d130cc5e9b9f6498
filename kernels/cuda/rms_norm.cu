// SPDX-License-Identifier: Apache-2.0
// Residual add, RMS norm, and the norm's output in every format that is wanted.
//
// Tiling: a block per row, the row in shared memory as f32 between the two passes; a thread takes
// four neighbours at a time, with kDeep such loads under way, and has its weights before the
// previous kernel ends. The number of threads depends on the width of a row only, and with it the
// order of the sum of squares. Limit: bytes (residual read and written, delta read, output written,
// once each); with few rows, the latency of one launch and of two passes over a row.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/row_writer.h"

namespace nibble {
namespace {

template <bool kVectors>
struct RmsNormKernel {
  using Params = RmsNormArgs;
  static constexpr int kThreads = 512;
  static constexpr int kMinBlocks = 2;
  static constexpr int kDeep = 2;

  static NIBBLE_DEVICE void Run(const Params& p) {
    auto* row = reinterpret_cast<float*>(simt::Shared());  // RowSharedBytes
    auto* partial = row + RowFloats(p.dim);                // (warps)
    const int64_t step = 4 * int64_t{simt::Threads()}, own = 4 * int64_t{simt::Thread()};
    Four weight[kDeep];
    NIBBLE_UNROLL
    for (int d = 0; d < kDeep; ++d) {
      if (own + d * step < p.dim) weight[d] = Load(p.weight, p, 0, own + d * step);
    }
    const int64_t i = simt::BlockX();
    simt::WaitForPreviousKernel();
    const int64_t from = p.rows != nullptr ? p.rows[i] : i;
    float squares = 0.0f;
    for (int64_t begin = own; begin < p.dim; begin += kDeep * step) {
      Four x[kDeep], delta[kDeep];
      NIBBLE_UNROLL
      for (int d = 0; d < kDeep; ++d) {
        const int64_t k = begin + d * step;
        if (k >= p.dim) break;
        x[d] = Load(p.x, p, from, k);
        if (p.delta.data != nullptr) {
          delta[d] = LoadFour<kVectors>(p.delta.data, p.delta.dtype, from, p.dim, k);
        }
      }
      NIBBLE_UNROLL
      for (int d = 0; d < kDeep; ++d) {
        const int64_t k = begin + d * step;
        if (k >= p.dim) break;
        NIBBLE_UNROLL
        for (int e = 0; e < 4; ++e) {
          float& h = x[d].value[e];
          if (p.delta.data != nullptr) h += delta[d].value[e];
          squares = std::fma(h, h, squares);
        }
        if (p.delta.data != nullptr) {
          StoreFour<kVectors>({p.x, DType::kF32}, from, p.dim, k, x[d]);
        }
        Keep(row, k, x[d]);
      }
    }
    squares = simt::WarpSum(squares);
    if (simt::Lane() == 0) partial[simt::WarpIndex()] = squares;
    simt::SyncThreads();
    float total = 0.0f;
    for (int w = 0; w < simt::Threads() / simt::kWarp; ++w) total += partial[w];
    const float inverse = 1.0f / std::sqrt(total / static_cast<float>(p.dim) + p.eps);
    const bool quantized = WantsCodes(p.out);
    for (int64_t begin = own; begin < p.dim; begin += kDeep * step) {
      NIBBLE_UNROLL
      for (int d = 0; d < kDeep; ++d) {
        const int64_t k = begin + d * step;
        if (k >= p.dim) break;
        if (begin != own) weight[d] = Load(p.weight, p, 0, k);
        Four y = LoadFour<true>(row, DType::kF32, 0, p.dim, k);
        NIBBLE_UNROLL
        for (int e = 0; e < 4; ++e) {
          y.value[e] = y.value[e] * inverse * (p.weight_offset + weight[d].value[e]);
        }
        if (quantized) Keep(row, k, y);
        WriteRowFour<kVectors>(p.out, i, k, y);
      }
    }
    if (quantized) {
      simt::SyncThreads();
      WriteRowCodes(p.out, i, row);
    }
    simt::StartNextKernel();
  }

 private:
  static NIBBLE_DEVICE Four Load(const float* data, const Params& p, int64_t row, int64_t k) {
    return LoadFour<kVectors>(data, DType::kF32, row, p.dim, k);
  }
  // In shared memory, where a row has room for whole fours.
  static NIBBLE_DEVICE void Keep(float* row, int64_t k, const Four& four) {
    StoreFour<true>({row, DType::kF32}, 0, 0, k, four);
  }
};

}  // namespace

void LaunchRmsNorm(Device& device, const RmsNormArgs& args) {
  if (args.num_rows == 0) return;
  LaunchShape shape;
  shape.grid_x = static_cast<int>(args.num_rows);
  // Two fours a thread.
  shape.threads = static_cast<int>(std::clamp<int64_t>((args.dim + 255) / 256 * 32, 64, 512));
  shape.shared_bytes = RowSharedBytes(args.dim);
  const bool delta =
      args.delta.data == nullptr || FourAtOnce(args.delta.data, args.delta.dtype, args.dim);
  if (delta && FourAtOnce(args.x, DType::kF32, args.dim) &&
      FourAtOnce(args.weight, DType::kF32, args.dim) && FourAtOnce(args.out)) {
    Launch<RmsNormKernel<true>>(device.stream(), shape, args);
  } else {
    Launch<RmsNormKernel<false>>(device.stream(), shape, args);
  }
}

}  // namespace nibble
