// SPDX-License-Identifier: Apache-2.0
// Rows of an embedding table.
#pragma once

#include <variant>

#include "kernels/cuda/device.h"
#include "kernels/cuda/device_weight.h"
#include "kernels/cuda/packed_weight.h"
#include "kernels/ops.h"

namespace nibble {

// What a table may be: in any scheme as it is stored or, where it is a tied head, as the head's
// product keeps it. Read(n, k) are the same bits in each.
struct StoredTable {
  DeviceWeight weight;

  NIBBLE_HD int64_t cols() const { return weight.cols; }
  NIBBLE_HD float Read(int64_t n, int64_t k) const { return ReadWeight(weight.view(), n, k); }
};
struct PackedTable {
  PackedWeight weight;  // output tile 0 is the table's first
  int64_t width = 0;

  NIBBLE_HD int64_t cols() const { return width; }
  NIBBLE_HD float Read(int64_t n, int64_t k) const { return ReadPackedWeight(weight, n, k); }
};
using EmbeddingTable = std::variant<StoredTable, PackedTable>;

// EmbedArgs (kernels/ops.h).
struct DeviceEmbedArgs {
  EmbeddingTable table;
  const int32_t* ids;  // (rows), each a row of the table, or -1 - i: the one of drawn[i]
  int64_t rows;
  float scale;  // multiplies the row
  float* out;   // (rows, columns of the table) f32
  const SampleResult* drawn = nullptr;
  int32_t* tokens = nullptr;
};
void LaunchEmbed(Device& device, const DeviceEmbedArgs& args);

}  // namespace nibble
