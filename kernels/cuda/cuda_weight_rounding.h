// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "kernels/cuda/device.h"
#include "kernels/weight_rounding.h"

namespace nibble {

// On an opened device, which must outlive it. Device memory is taken for the length of a call: two
// matrices (cols, cols) and at most about a gigabyte for rows.
std::unique_ptr<WeightRounding> MakeCudaWeightRounding(Device& device);

}  // namespace nibble
