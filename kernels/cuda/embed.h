// SPDX-License-Identifier: Apache-2.0
// Rows of an embedding table.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/device_weight.h"
#include "kernels/cuda/packed_weight.h"

namespace nibble {

// EmbedArgs (kernels/ops.h) with a table in any scheme, as it is stored or, where it is a tied
// head, as the head's product keeps it: the same bits.
struct DeviceEmbedArgs {
  DeviceWeight table;   // without pointers if `packed` holds it
  PackedWeight packed;  // data == nullptr: as stored; otherwise output tile 0 is the table's first
  const uint8_t* int8;  // nullptr, or the table in Int8Layout (linear_int8.h)
  const int32_t* ids;   // (rows), each in [0, table.rows)
  int64_t rows;
  float scale;  // multiplies the row
  float* out;   // (rows, table.cols) f32
};
void LaunchEmbed(Device& device, const DeviceEmbedArgs& args);

}  // namespace nibble
