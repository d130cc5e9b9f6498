// SPDX-License-Identifier: Apache-2.0
// Sums of outer products; the arguments are those of kernels/ops.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace nibble {

// The sum over rows is one chain of fused multiply-adds per element, in order of rows, as on the
// CPU: the same bits.
void LaunchHessian(Device& device, const HessianArgs& args);

// Tiles on and below the diagonal, row after row: index = row * (row + 1) / 2 + column.
struct TriangleTile {
  int64_t row;
  int64_t column;  // <= row
};
NIBBLE_HD inline TriangleTile TriangleTileAt(int64_t index) {
  auto row = static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(index) + 1.0) - 1.0) / 2.0);
  while (row * (row + 1) / 2 > index) --row;
  while ((row + 1) * (row + 2) / 2 <= index) ++row;
  return {row, index - row * (row + 1) / 2};
}

}  // namespace nibble
