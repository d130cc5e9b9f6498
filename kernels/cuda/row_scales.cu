// SPDX-License-Identifier: Apache-2.0
// Scales of the rows of a weight as f32, once when it is prepared. A warp per row.
#include "kernels/check.h"
#include "kernels/cuda/linear_rows.h"
#include "kernels/cuda/simt.h"

namespace nibble {
namespace {

struct RowScalesParams {
  DeviceWeight weight;
  float* scales;
};

struct RowScalesKernel {
  using Params = RowScalesParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t n = int64_t{simt::BlockX()} * (kThreads / simt::kWarp) + simt::WarpIndex();
    if (n >= p.weight.rows) return;  // a whole warp
    simt::WaitForPreviousKernel();
    bool bad = false;
    if (p.weight.scheme.code == DType::kF8E4M3) {
      const auto* codes = static_cast<const uint8_t*>(p.weight.codes) + n * p.weight.cols;
      for (int64_t k = simt::Lane(); k < p.weight.cols; k += simt::kWarp) {
        bad |= (codes[k] & 0x7f) == 0x7f;
      }
    }
    const bool any = simt::Ballot(bad) != 0;
    if (simt::Lane() == 0) p.scales[n] = any ? NAN : ReadScale(p.weight.view(), n, 0);
  }
};

}  // namespace

void LaunchRowScales(Device& device, const DeviceWeight& weight, float* scales) {
  NIBBLE_CHECK(weight.scheme.container == Container::kBytes && weight.scheme.group == kWholeRow);
  constexpr int kRows = RowScalesKernel::kThreads / simt::kWarp;
  LaunchShape shape;
  shape.grid_x = static_cast<int>((weight.rows + kRows - 1) / kRows);
  shape.threads = RowScalesKernel::kThreads;
  Launch<RowScalesKernel>(device.stream(), shape, {weight, scales});
}

}  // namespace nibble
