// SPDX-License-Identifier: Apache-2.0
// Tiling: a warp per output feature, its lanes 32 input features apart; eight tokens share each
// decoded weight. Limit: decoding, some ten instructions for a weight, before bytes.
#include <cmath>

#include "kernels/cuda/linear_exact.h"
#include "kernels/cuda/row_writer.h"

namespace nibble {
namespace {

constexpr int kTokens = 8;  // per block

struct LinearExactKernel {
  using Params = LinearExactArgs;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t n = int64_t{simt::BlockX()} * (simt::Threads() / simt::kWarp) + simt::WarpIndex();
    const int64_t first = int64_t{simt::BlockY()} * kTokens;
    if (n >= p.weight.rows) return;  // a whole warp
    const WeightView weight = p.weight.view();
    simt::WaitForPreviousKernel();
    float sums[kTokens] = {};
    for (int64_t k = simt::Lane(); k < weight.cols; k += simt::kWarp) {
      const float w = ReadWeight(weight, n, k);
      NIBBLE_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        if (first + t >= p.rows) continue;
        const float x = LoadFloat(p.in.data, p.in.format.dtype, (first + t) * weight.cols + k);
        sums[t] = std::fma(x, w, sums[t]);
      }
    }
    NIBBLE_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      const float y = simt::WarpSum(sums[t]) + (p.bias != nullptr ? p.bias[n] : 0.0f);
      if (simt::Lane() != 0 || first + t >= p.rows) continue;
      StoreFloat(p.out, (first + t) * weight.rows + n, y);
    }
  }
};

}  // namespace

void LaunchLinearExact(Device& device, const LinearExactArgs& args) {
  if (args.rows == 0) return;
  LaunchShape shape;
  constexpr int kWarps = LinearExactKernel::kThreads / simt::kWarp;
  shape.grid_x = static_cast<int>((args.weight.rows + kWarps - 1) / kWarps);
  shape.grid_y = static_cast<int>((args.rows + kTokens - 1) / kTokens);
  shape.threads = LinearExactKernel::kThreads;
  Launch<LinearExactKernel>(device.stream(), shape, args);
}

}  // namespace nibble
