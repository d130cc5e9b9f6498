// SPDX-License-Identifier: Apache-2.0
// y += b for products of the library. Tiling: a thread per element. Limit: bytes of y, twice.
#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/row_writer.h"

namespace nibble {
namespace {

struct AddBiasKernel {
  using Params = AddBiasArgs;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t n = int64_t{simt::BlockX()} * simt::Threads() + simt::Thread();
    simt::WaitForPreviousKernel();
    if (n >= p.cols) return;
    for (int64_t row = simt::BlockY(); row < p.rows; row += simt::GridY()) {
      const int64_t at = row * p.cols + n;
      StoreFloat(p.y, at, LoadFloat(p.y.data, p.y.dtype, at) + p.bias[n]);
    }
  }
};

}  // namespace

void LaunchAddBias(Device& device, const AddBiasArgs& args) {
  if (args.rows == 0) return;
  LaunchShape shape;
  shape.threads = AddBiasKernel::kThreads;
  shape.grid_x = static_cast<int>((args.cols + shape.threads - 1) / shape.threads);
  shape.grid_y = static_cast<int>(args.rows < 1024 ? args.rows : 1024);
  Launch<AddBiasKernel>(device.stream(), shape, args);
}

}  // namespace nibble
