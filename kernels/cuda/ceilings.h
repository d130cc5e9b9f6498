// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/device.h"

namespace nibble {

// Copies between two buffers far beyond the cache, and the library's products of 8192 x 8192 x
// 8192, on random data. What cannot be measured (no memory, no algorithm) is 0. Takes about a
// second.
Ceilings MeasureCudaCeilings(Device& device);

}  // namespace nibble
