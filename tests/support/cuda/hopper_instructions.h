// SPDX-License-Identifier: Apache-2.0
// The vocabulary of kernels/cuda/simt_hopper.h in small kernels, on whichever device there is:
// the emulator, or a GPU of compute capability 9.0.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.h"

namespace nibble::testing {

// Whether the device has them.
inline bool HasHopperInstructions(const Device& device) {
  return device.info().name == "emulator" || device.info().major == 9;
}

// A warp writes numbers to a ring of two slots, another adds them up, `rounds` of them: lane l of
// round r writes in[32 r + l], and reads what lane 31 - l wrote. out (32): the sums.
void LaunchRing(Device& device, const uint32_t* in, int rounds, uint32_t* out);

// Clusters of two blocks, `clusters` of them. In round r each block copies 8 of 16 rows of columns
// [128 r, 128 r + 128) of `in` (rows, cols), bytes, to both blocks, rows of the second block first;
// both write all 16 to out (2 clusters, rounds, 16, 128). What is outside of `in` is 0.
void LaunchClusterTiles(Device& device, const uint8_t* in, int64_t rows, int64_t cols, int clusters,
                        int rounds, uint8_t* out);

// d (128, n) = a (128, depth) b (n, depth)^T by two warpgroups of a block: a by asynchronous copies
// of threads, b by tiles. int8 with int32 sums, or bf16 with f32 sums; n is 32, 128 or 256, rows of
// operands are whole multiples of 128 bytes.
void LaunchWgmma(Device& device, const int8_t* a, const int8_t* b, int n, int depth, int32_t* d);
void LaunchWgmma(Device& device, const uint16_t* a, const uint16_t* b, int n, int depth, float* d);

}  // namespace nibble::testing
