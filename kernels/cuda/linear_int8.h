// SPDX-License-Identifier: Apache-2.0
// y = x W^T + b with int8 weights of one scale per output feature and int8 activations of one scale
// per token (scheme w8a8): exact int32 sums, so a row depends neither on the other rows nor on the
// tile that is chosen.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/device_weight.h"
#include "kernels/ops.h"

namespace nibble {

// ---- The device's layout of the codes
// 8 output features by 64 input features are 512 bytes: 16 for each lane, which are its b fragments
// of two multiplications of 32 (simt.h, MmaS8). Four of these, 32 output features, follow each
// other, then the next 64 input features, then the next 32 output features: a block reads its
// weights as one stream. Codes outside of the matrix are 0.
inline constexpr int kInt8Panel = 32;
inline constexpr int kInt8Depth = 64;
inline constexpr int kInt8TileBytes = kInt8Panel * kInt8Depth;
inline constexpr int64_t kMaxInt8LinearCols = int64_t{1} << 17;  // 2^17 * 127^2 < 2^31

struct Int8Layout {
  int64_t rows = 0;  // output features
  int64_t cols = 0;  // input features

  NIBBLE_HD constexpr int64_t panels() const { return (rows + kInt8Panel - 1) / kInt8Panel; }
  NIBBLE_HD constexpr int64_t depths() const { return (cols + kInt8Depth - 1) / kInt8Depth; }
  NIBBLE_HD constexpr int64_t code_bytes() const { return panels() * depths() * kInt8TileBytes; }
  // Codes, then one f32 scale per output feature.
  constexpr int64_t bytes() const {
    return code_bytes() + rows * static_cast<int64_t>(sizeof(float));
  }
  // Where the code (n, k) lies.
  NIBBLE_HD constexpr int64_t Index(int64_t n, int64_t k) const {
    const int64_t tile = n / kInt8Panel * depths() + k / kInt8Depth;
    const int64_t lane = n % 8 * 4 + k % 16 / 4;
    return tile * kInt8TileBytes + n % kInt8Panel / 8 * 512 + lane * 16 + k % kInt8Depth / 16 * 4 +
           k % 4;
  }
};

// Writes Int8Layout::bytes() to `packed` from a weight of scheme w8a8.
void LaunchPackInt8(Device& device, const DeviceWeight& weight, uint8_t* packed);

// ---- The product

struct Int8Weight {
  const uint8_t* packed = nullptr;
  const float* bias = nullptr;  // (rows) or nullptr
  int64_t rows = 0;             // output features
};

struct LinearInt8Args {
  std::array<Int8Weight, kMaxGroupWeights> weights{};
  int count = 0;
  ActView in;  // (rows, cols) kI8, kWholeRow; at most kMaxInt8LinearCols columns
  int64_t rows = 0;
  std::array<Floats, kMaxGroupWeights> out{};  // (rows, output features of weight i)
};
// out = acc * (scale of the token * scale of the output feature) + bias, in f32, as on the CPU.
void LaunchLinearInt8(Device& device, const LinearInt8Args& args);

}  // namespace nibble
