// SPDX-License-Identifier: Apache-2.0
// What the library's product of codes leaves to do: scales and bias.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace nibble {

// out[m][first + n] = sums[m][n] * (token_scales[m] * scales[n]) + bias[n], in f32.
struct ScaleSumsArgs {
  const void* sums;           // (rows, features), aligned to 16 bytes
  DType type;                 // of the sums: kF32 | kI32
  const float* token_scales;  // (rows)
  const float* scales;        // (features)
  const float* bias;          // (features) or nullptr
  int64_t rows;
  int64_t features;
  Floats out;     // (rows, out_features)
  int64_t first;  // column of `out` that sums begin at
  int64_t out_features;
};
void LaunchScaleSums(Device& device, const ScaleSumsArgs& args);

}  // namespace nibble
