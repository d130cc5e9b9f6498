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

// Each round copies two pieces of 256 bytes of `in` to shared memory in bulk, waits, and writes
// them to `out`, (rounds, 128) both.
void LaunchBulkCopies(Device& device, const uint32_t* in, int rounds, uint32_t* out);

// Clusters of two blocks, `clusters` of them: in each round, each block copies its half of the 128
// numbers of its cluster and round to both blocks, and both write all of them. in (clusters,
// rounds, 128), out (2 clusters, rounds, 128).
void LaunchClusterCopies(Device& device, const uint32_t* in, int clusters, int rounds,
                         uint32_t* out);

// d (128, n) = a (128, depth) b (n, depth)^T, int8, int32 sums, by two warpgroups of a block; n is
// 128 or 256, depth a multiple of 128. b is given as rows lie in shared memory: 128 of the summed
// axis, in units of SwizzledUnit(), then the next 128.
void LaunchWgmma(Device& device, const int8_t* a, const int8_t* b, int n, int depth, int32_t* d);

}  // namespace nibble::testing
