// SPDX-License-Identifier: Apache-2.0
// y = x W^T + b from a weight as it is stored, in any scheme of the table: f32 products and sums in
// ascending order of the input feature within a lane, lanes added as a tree. The definition that
// the fast kernels are compared with, exact mode, and the path of schemes that have no kernel of
// their own while there are few tokens.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/device_weight.h"
#include "kernels/ops.h"

namespace nibble {

struct LinearExactArgs {
  DeviceWeight weight;
  const float* bias;  // (weight.rows) or nullptr
  ActView in;         // (rows, weight.cols), kF32 or kBF16
  int64_t rows;
  Floats out;  // (rows, weight.rows)
};

void LaunchLinearExact(Device& device, const LinearExactArgs& args);

}  // namespace nibble
