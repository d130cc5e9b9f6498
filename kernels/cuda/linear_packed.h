// SPDX-License-Identifier: Apache-2.0
// y_i = x W_i^T + b_i for the weights W_i of a packed group: bf16 activations times int4 or int8
// weights, f32 sums.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/packed_weight.h"
#include "kernels/ops.h"

namespace nibble {

// One weight of the group, and where its product goes.
struct LinearSegment {
  int first_tile = 0;           // of its output tiles in the packed group
  int64_t features = 0;         // output features
  const float* bias = nullptr;  // (features) f32 or nullptr
  Floats out;                   // (rows, features) kBF16 | kF32
};

// What blocks exchange their parts through. Launches on one stream may share it.
struct LinearScratch {
  float* parts = nullptr;      // (LinearPartFloats) not initialized
  int32_t* arrived = nullptr;  // (output tiles) 0 before and after; if a launch was cut off, it
                               // must be zeroed
};
inline constexpr int kMaxLinearTokens = 64;  // rows in one pass over the weight
constexpr int64_t LinearPartFloats(int multiprocessors) {
  return int64_t{2} * multiprocessors * kMaxLinearTokens * kPackedTile;
}

struct PackedLinearArgs {
  PackedWeight weight;
  const uint16_t* x = nullptr;  // (rows, cols) bf16
  int64_t rows = 0;             // tokens
  int64_t cols = 0;             // input features; PackedTiles(cols) == weight.layout.k_tiles
  int num_segments = 1;
  std::array<LinearSegment, kMaxGroupWeights> segments{};  // in order of first_tile, the first at 0
  LinearScratch scratch;
};

// Any number of rows; more than kMaxLinearTokens take several passes over the weight. A row's bits
// depend on its activations, the weight and the number of multiprocessors only. The format's bits
// must be 4 and 8, respectively.
void LaunchLinearW4A16(Device& device, const PackedLinearArgs& args);
void LaunchLinearW8A16(Device& device, const PackedLinearArgs& args);

}  // namespace nibble
