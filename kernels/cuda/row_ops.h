// SPDX-License-Identifier: Apache-2.0
// Operations on rows of activations; the arguments are those of kernels/ops.h.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace nibble {

void LaunchRmsNorm(Device& device, const RmsNormArgs& args);
void LaunchGatedActivation(Device& device, const GatedActivationArgs& args);

struct AddBiasArgs {
  Floats y;           // (rows, cols), updated in place
  const float* bias;  // (cols)
  int64_t rows;
  int64_t cols;
};
void LaunchAddBias(Device& device, const AddBiasArgs& args);

}  // namespace nibble
