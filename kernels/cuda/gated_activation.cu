// SPDX-License-Identifier: Apache-2.0
// act(gate) * up, in every format that is wanted.
//
// Tiling: a block per row; a row that is quantized lies in shared memory as f32. Limit: bytes (gate
// and up read, output written, once each).
#include <cmath>

#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/row_writer.h"

namespace nibble {
namespace {

struct GatedActivationKernel {
  using Params = GatedActivationArgs;
  static constexpr int kThreads = 512;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE float Activate(GateActivation activation, float x) {
    if (activation == GateActivation::kSilu) return x / (1.0f + std::exp(-x));
    // Hendrycks and Gimpel 2016, arXiv 1606.08415: the tanh form.
    constexpr float kRootTwoOverPi = 0.7978845608028654f;
    return 0.5f * x * (1.0f + std::tanh(kRootTwoOverPi * (x + 0.044715f * x * x * x)));
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    auto* values = reinterpret_cast<float*>(simt::Shared());  // (dim) where rows are quantized
    const bool quantized = WantsCodes(p.out);
    const int64_t row = simt::BlockX();
    simt::WaitForPreviousKernel();
    for (int64_t k = simt::Thread(); k < p.dim; k += simt::Threads()) {
      const float gate = LoadFloat(p.gate.data, p.gate.dtype, row * p.dim + k);
      const float up = LoadFloat(p.up.data, p.up.dtype, row * p.dim + k);
      const float y = Activate(p.activation, gate) * up;
      if (quantized) values[k] = y;
      WriteRowFloat(p.out, row, k, y);
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
  shape.threads = args.dim >= 2048 ? 512 : args.dim >= 512 ? 256 : 64;
  shape.shared_bytes = WantsCodes(args.out) ? static_cast<size_t>(args.dim) * sizeof(float) : 0;
  Launch<GatedActivationKernel>(device.stream(), shape, args);
}

}  // namespace nibble
