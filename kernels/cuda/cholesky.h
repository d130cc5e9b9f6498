// SPDX-License-Identifier: Apache-2.0
// The factor that GPTQ needs, as engine/quant/cholesky.cc computes it: the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device.h"

namespace nibble {

// Columns that are factored at once, as in engine/quant/cholesky.cc.
inline constexpr int64_t kCholeskyPanel = 128;

struct CholeskyArgs {
  float* h;         // (n, n): H, both triangles; becomes U with H^-1 = U^T U, zeros below
  int64_t n;        // >= 1
  void* scratch;    // CholeskyScratchBytes(n)
  int32_t* failed;  // becomes 1 where H is not positive definite (h is then undefined), else 0
};
size_t CholeskyScratchBytes(int64_t n);
void LaunchCholesky(Device& device, const CholeskyArgs& args);

}  // namespace nibble
