// SPDX-License-Identifier: Apache-2.0
// Codes of e4m3 as 16-bit floats, which hold them and products of two of them exactly, for the
// products of scheme fp8.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace nibble {

// ---- Codes as halves

// Two of the four codes of a word, bytes 1 and 3, as f16 times 2^-8: exact, subnormals too. The
// exponent of f16 has a bit more and another bias. NaN has no such image; it becomes +-480.
inline constexpr float kE4M3PairUnit = 256.0f;
NIBBLE_HD constexpr uint32_t E4M3OddPair(uint32_t word) {
  return (word & 0x80008000u) | ((word & 0x7f007f00u) >> 1);
}
// Bytes 0 and 2.
NIBBLE_HD constexpr uint32_t E4M3EvenPair(uint32_t word) { return E4M3OddPair(word << 8); }

// ---- Where the library multiplies no e4m3

// bf16 (exact, NaN too) of `count` codes; both aligned to 16 bytes.
void LaunchWidenE4M3(Device& device, const uint8_t* codes, int64_t count, uint16_t* out);

}  // namespace nibble
