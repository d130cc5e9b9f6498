// SPDX-License-Identifier: Apache-2.0
// y = x W^T + b with e4m3 weights of one scale per output feature and e4m3 activations of one scale
// per token (scheme fp8). Products of codes are exact in 16-bit floats, sums are f32.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/device_weight.h"
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

// ---- The product for few tokens

// The weight as it is stored, and its scales as f32: NaN for an output feature that has a NaN among
// its codes.
struct E4M3Weight {
  const uint8_t* codes = nullptr;  // (rows, cols), aligned to 16 bytes
  const float* scales = nullptr;   // (rows)
  const float* bias = nullptr;     // (rows) or nullptr
  int64_t rows = 0;                // output features
};
// Writes E4M3Weight::scales of a weight of scheme fp8.
void LaunchE4M3Scales(Device& device, const DeviceWeight& weight, float* scales);

struct LinearE4M3Args {
  std::array<E4M3Weight, kMaxGroupWeights> weights{};
  int count = 0;
  ActView
      in;  // (rows, cols) kF8E4M3, kWholeRow; a token with a NaN among its codes has a NaN scale
  int64_t rows = 0;
  std::array<Floats, kMaxGroupWeights> out{};  // (rows, output features of weight i)
};
// out = sum * (scale of the token * scale of the output feature) + bias, in f32. A row's bits
// depend on its token and the weight only. Any number of rows; meant for up to kMaxE4M3Tokens,
// above which the weight is read several times.
inline constexpr int kMaxE4M3Tokens = 64;
void LaunchLinearE4M3(Device& device, const LinearE4M3Args& args);

// ---- Parts of the product for many tokens, where the library multiplies no e4m3

// bf16 (exact, NaN too) of `count` codes; both aligned to 16 bytes.
void LaunchWidenE4M3(Device& device, const uint8_t* codes, int64_t count, uint16_t* out);

// out[m][first + n] = sums[m][n] * (token_scales[m] * scales[n]) + bias[n].
struct ScaleE4M3Args {
  const float* sums;          // (rows, features)
  const float* token_scales;  // (rows)
  const float* scales;        // (features)
  const float* bias;          // (features) or nullptr
  int64_t rows;
  int64_t features;
  Floats out;     // (rows, out_features)
  int64_t first;  // column of `out` that sums begin at
  int64_t out_features;
};
void LaunchScaleE4M3(Device& device, const ScaleE4M3Args& args);

}  // namespace nibble
