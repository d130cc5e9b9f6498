// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/device.h"

namespace nibble {

// Copies between two buffers far beyond the cache, and the library's products of 8192 x 8192 x
// 8192, on random data. What cannot be measured (no memory, no algorithm) is 0. Takes about a
// second.
Ceilings MeasureCudaCeilings(Device& device);
// The same product of e4m3 with a scale for each row, in GFLOP/s; 0 where the library has none.
double MeasureE4M3Ceiling(Device& device);

}  // namespace nibble
