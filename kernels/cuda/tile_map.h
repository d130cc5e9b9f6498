// SPDX-License-Identifier: Apache-2.0
// How the copy engine of compute capability 9.0 is told of a matrix in global memory ("tensor
// map"): made on the host, passed to a kernel as a part of its Params, read by CopyTile
// (simt_hopper.h). tile_map.cc asks the driver for it, tests/support/cuda/ has its own.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"

namespace nibble {

struct alignas(128) TileMap {
  uint64_t opaque[16];
};

// Of bytes (rows, cols), row-major at `data`, in tiles of `tile_rows` rows, at most 256, and 128
// columns. `data` and `cols` are multiples of 16, both sizes below 2^31. What the driver refuses
// becomes an error of the stream.
TileMap MapTiles(Stream& stream, const void* data, int64_t rows, int64_t cols, int tile_rows);

}  // namespace nibble
