// SPDX-License-Identifier: Apache-2.0
// y_i = x W_i^T + b_i with weights and activations of one type whose rows lie as they are stored:
// int8 (schemes w8a8 and llm-int8), e4m3 (scheme fp8), bf16. A row of y has the same bits whatever
// the other rows and however many they are.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/device_weight.h"
#include "kernels/ops.h"

namespace nibble {

struct RowsWeight {
  const void* codes = nullptr;         // (features, cols), aligned to 16 bytes
  const float* scales = nullptr;       // (features) int8 and e4m3: LaunchRowScales
  const float* bias = nullptr;         // (features) or nullptr
  int64_t features = 0;                // output features
  Floats out;                          // (rows, features)
  int64_t stride = 0;                  // elements from a row of `out` to the next
  const uint16_t* outliers = nullptr;  // (features, LinearRowsArgs::outlier_count) bf16
};

struct LinearRowsArgs {
  std::array<RowsWeight, kMaxGroupWeights> weights{};
  int count = 0;
  const void* x = nullptr;             // (rows, cols), aligned to 16 bytes
  const float* scales = nullptr;       // (rows) int8 and e4m3
  int64_t rows = 0;                    // tokens
  int64_t cols = 0;                    // input features
  const uint16_t* outliers = nullptr;  // int8: (rows, OutlierStride) bf16
  int32_t outlier_count = 0;
  // Whether the launch before this one writes weights: they are not asked for while it runs.
  bool fresh_weights = false;
};

// y = sum * (scale of the token * scale of the output feature) + outliers + bias, in f32; outliers
// is the product of the bf16 matrices, whose sum goes on from the scaled one. Sums of int8 are
// exact for up to kMaxInt8LinearCols columns; those of e4m3 and bf16 are f32, in one order for any
// number of rows. e4m3: a token or a feature with a NaN among its codes has a NaN scale; made for
// up to kMaxE4M3Tokens rows, beyond which the weight is read several times.
void LaunchLinearInt8(Device& device, const LinearRowsArgs& args);
void LaunchLinearE4M3(Device& device, const LinearRowsArgs& args);
void LaunchLinearBF16(Device& device, const LinearRowsArgs& args);  // no scales
inline constexpr int64_t kMaxInt8LinearCols = int64_t{1} << 17;     // 2^17 * 127^2 < 2^31
inline constexpr int64_t kMaxE4M3Tokens = 64;

// Writes RowsWeight::scales of a weight with a scale per row, NaN for a row that has a NaN among
// its codes.
void LaunchRowScales(Device& device, const DeviceWeight& weight, float* scales);

}  // namespace nibble
