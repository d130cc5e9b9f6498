// SPDX-License-Identifier: Apache-2.0
// act(gate) * up, in every format that is wanted.
//
// Tiling: a block per row, a thread four neighbours at a time with kDeep loads of each input under
// way; a row that is quantized lies in shared memory as f32. Limit: bytes (gate and up read, output
// written, once each); with few rows, what one multiprocessor loads, and latency.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/row_writer.h"

namespace nibble {
namespace {

template <bool kVectors>
struct GatedActivationKernel {
  using Params = GatedActivationArgs;
  static constexpr int kThreads = 512;
  static constexpr int kMinBlocks = 2;
  static constexpr int kDeep = 4;

  static NIBBLE_DEVICE float Activate(GateActivation activation, float x) {
    if (activation == GateActivation::kSilu) return x / (1.0f + std::exp(-x));
    // Hendrycks and Gimpel 2016, arXiv 1606.08415: the tanh form.
    constexpr float kRootTwoOverPi = 0.7978845608028654f;
    return 0.5f * x * (1.0f + std::tanh(kRootTwoOverPi * (x + 0.044715f * x * x * x)));
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    auto* values =
        reinterpret_cast<float*>(simt::Shared());  // RowSharedBytes if rows are quantized
    const bool quantized = WantsCodes(p.out);
    const int64_t row = simt::BlockX();
    const int64_t step = 4 * int64_t{simt::Threads()};
    simt::WaitForPreviousKernel();
    for (int64_t begin = 4 * int64_t{simt::Thread()}; begin < p.dim; begin += kDeep * step) {
      Four gate[kDeep], up[kDeep];
      NIBBLE_UNROLL
      for (int d = 0; d < kDeep; ++d) {
        const int64_t k = begin + d * step;
        if (k >= p.dim) break;
        gate[d] = LoadFour<kVectors>(p.gate.data, p.gate.dtype, row, p.dim, k);
        up[d] = LoadFour<kVectors>(p.up.data, p.up.dtype, row, p.dim, k);
      }
      NIBBLE_UNROLL
      for (int d = 0; d < kDeep; ++d) {
        const int64_t k = begin + d * step;
        if (k >= p.dim) break;
        Four y;
        NIBBLE_UNROLL
        for (int e = 0; e < 4; ++e) {
          y.value[e] = Activate(p.activation, gate[d].value[e]) * up[d].value[e];
        }
        if (quantized) StoreFour<true>({values, DType::kF32}, 0, 0, k, y);
        WriteRowFour<kVectors>(p.out, row, k, y);
      }
    }
    if (quantized) {
      simt::SyncThreads();
      WriteRowCodes(p.out, row, values);
    }
    simt::StartNextKernel();
  }
};

}  // namespace

void LaunchGatedActivation(Device& device, const GatedActivationArgs& args) {
  if (args.rows == 0) return;
  LaunchShape shape;
  shape.grid_x = static_cast<int>(args.rows);
  shape.threads = static_cast<int>(std::clamp<int64_t>((args.dim + 255) / 256 * 32, 64, 512));
  shape.shared_bytes = WantsCodes(args.out) ? RowSharedBytes(args.dim) : 0;
  if (FourAtOnce(args.gate.data, args.gate.dtype, args.dim) &&
      FourAtOnce(args.up.data, args.up.dtype, args.dim) && FourAtOnce(args.out)) {
    Launch<GatedActivationKernel<true>>(device.stream(), shape, args);
  } else {
    Launch<GatedActivationKernel<false>>(device.stream(), shape, args);
  }
}

}  // namespace nibble
