// SPDX-License-Identifier: Apache-2.0
// Quantized weights as plain matrices, for products that the library computes when there are many
// tokens. The values are those of ReadWeight, rounded once if the output is bf16.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/device_weight.h"
#include "kernels/cuda/packed_weight.h"
#include "kernels/ops.h"

namespace nibble {

// Rows [first, first + count) in any scheme; out is (count, weight.cols), row-major.
void LaunchDequantize(Device& device, const DeviceWeight& weight, int64_t first, int64_t count,
                      const Floats& out);

// One weight of a packed group: its output tiles begin at first_tile; out is (rows, cols),
// row-major, aligned to 16 bytes. PackedTiles(cols) == weight.layout.k_tiles.
struct DequantizePackedArgs {
  PackedWeight weight;
  int first_tile = 0;
  int64_t rows = 0;  // output features
  int64_t cols = 0;  // input features
  Floats out;        // kBF16 | kF32
};
void LaunchDequantizePacked(Device& device, const DequantizePackedArgs& args);

}  // namespace nibble
