// SPDX-License-Identifier: Apache-2.0
// Walsh-Hadamard transform of rows, to the bit that of kernels/hadamard.h.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace nibble {

struct HadamardArgs {
  Floats x;  // (rows, dim) f32 or bf16
  int64_t rows;
  int64_t dim;  // one that HadamardShapeOf knows
  float scale;  // 1 / sqrt(dim) makes the transform orthogonal
  ActSet out;   // (rows, dim) = scale * H x in each format; may be x's own memory
};
void LaunchHadamard(Device& device, const HadamardArgs& args);

}  // namespace nibble
