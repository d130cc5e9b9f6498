// SPDX-License-Identifier: Apache-2.0
// Tiling: a block per output feature, its threads along the input features. Limit: decoding, some
// ten to twenty instructions for a weight, before bytes (2 written for each weight).
#include "kernels/cuda/dequantize.h"
#include "kernels/cuda/row_writer.h"

namespace nibble {
namespace {

struct DequantizeParams {
  DeviceWeight stored;
  PackedWeight packed;
  int64_t first;
  int64_t cols;
  Floats out;
};

template <bool kPacked>
struct DequantizeKernel {
  using Params = DequantizeParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t row = simt::BlockX();
    const WeightView stored = p.stored.view();
    simt::WaitForPreviousKernel();
    for (int64_t k = simt::Thread(); k < p.cols; k += simt::Threads()) {
      const float w = kPacked ? ReadPackedWeight(p.packed, p.first + row, k)
                              : ReadWeight(stored, p.first + row, k);
      StoreFloat(p.out, row * p.cols + k, w);
    }
    simt::StartNextKernel();
  }
};

LaunchShape ShapeOf(int64_t count, int64_t cols) {
  LaunchShape shape;
  shape.grid_x = static_cast<int>(count);
  shape.threads = cols >= 1024 ? 256 : 64;
  return shape;
}

}  // namespace

void LaunchDequantize(Device& device, const DeviceWeight& weight, int64_t first, int64_t count,
                      const Floats& out) {
  if (count == 0) return;
  Launch<DequantizeKernel<false>>(device.stream(), ShapeOf(count, weight.cols),
                                  {weight, {}, first, weight.cols, out});
}

void LaunchDequantizePacked(Device& device, const PackedWeight& weight, int64_t first,
                            int64_t count, int64_t cols, const Floats& out) {
  if (count == 0) return;
  Launch<DequantizeKernel<true>>(device.stream(), ShapeOf(count, cols),
                                 {{}, weight, first, cols, out});
}

}  // namespace nibble
