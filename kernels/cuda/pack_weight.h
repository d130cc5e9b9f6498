// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/device_weight.h"
#include "kernels/cuda/packed_weight.h"

namespace nibble {

// Permutes a stored weight, HasPackedFormat(stored.scheme), into the output tiles of `packed` from
// `first_tile` on; PackedTiles(stored.rows) of them. The layout has the weight's format and
// PackedTiles(stored.cols) input tiles.
void LaunchPackWeight(Device& device, const DeviceWeight& stored, const PackedWeight& packed,
                      int first_tile);

}  // namespace nibble
