// SPDX-License-Identifier: Apache-2.0
// Products of rows of int8 (W8A8) or bf16 on compute capability 9.0.
#pragma once

#include "kernels/cuda/linear_rows.h"

namespace nibble {

// ---- The order of output tiles
// Blocks take tiles one after the other in this order; those that run at the same time share the
// rows of tokens and weights that they read, which then come from the second-level cache: tiles of
// one column after the other, of up to kWgmmaGroup rows of tiles.
inline constexpr int kWgmmaGroup = 8;

struct WgmmaTile {
  int row, column;
};
NIBBLE_HD constexpr WgmmaTile WgmmaTileOf(int index, int rows, int columns) {
  const int group = index / (kWgmmaGroup * columns);
  const int first = group * kWgmmaGroup;
  const int height = rows - first < kWgmmaGroup ? rows - first : kWgmmaGroup;
  const int place = index - first * columns;
  return {first + place % height, place / height};
}

// ---- The product

// Whether the kernel takes it: 9.0, rows of whole units of 16 bytes.
bool TakesLinearWgmma(const DeviceInfo& device, int64_t row_bytes);

// LaunchLinearInt8 with the same bits, and LaunchLinearBF16 with those of another order of sums,
// one for any number of rows. `blocks` is how many blocks take tiles, two at least; usually the
// device's multiprocessors.
void LaunchWgmmaInt8(Device& device, const LinearRowsArgs& args, int blocks);
void LaunchWgmmaBF16(Device& device, const LinearRowsArgs& args, int blocks);

}  // namespace nibble
