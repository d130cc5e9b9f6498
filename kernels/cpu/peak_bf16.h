// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace nibble {

// A register-only loop of AVX-512 bfloat16 dot products; returns the multiply-adds done. Only for
// CPUs that have AVX512_BF16.
double PeakBF16Dot(int64_t iterations);

}  // namespace nibble
