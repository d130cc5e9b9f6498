// SPDX-License-Identifier: Apache-2.0
// Rows of an embedding table.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/device_weight.h"

namespace nibble {

// EmbedArgs (kernels/ops.h) with a table as it is stored, in any scheme.
struct DeviceEmbedArgs {
  DeviceWeight table;
  const int32_t* ids;  // (rows), each in [0, table.rows)
  int64_t rows;
  float scale;  // multiplies the row
  float* out;   // (rows, table.cols) f32
};
void LaunchEmbed(Device& device, const DeviceEmbedArgs& args);

}  // namespace nibble
