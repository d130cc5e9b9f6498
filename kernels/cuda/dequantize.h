// SPDX-License-Identifier: Apache-2.0
// Weights as plain floats, for products of the library.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/device_weight.h"
#include "kernels/cuda/packed_weight.h"
#include "kernels/ops.h"

namespace nibble {

// Rows [first, first + count) of a stored weight in any scheme, as (count, weight.cols) of
// out.dtype, kBF16 or kF32: ReadWeight, rounded to nearest.
void LaunchDequantize(Device& device, const DeviceWeight& weight, int64_t first, int64_t count,
                      const Floats& out);

// The same of packed weights, to the bit: output features are counted over the padded tiles, `cols`
// is the number of input features.
void LaunchDequantizePacked(Device& device, const PackedWeight& weight, int64_t first,
                            int64_t count, int64_t cols, const Floats& out);

}  // namespace nibble
