// SPDX-License-Identifier: Apache-2.0
// y_i = x W_i^T + b_i for the weights W_i of a packed group: bf16 activations times int4 or int8
// weights, f32 sums.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cuda/device.h"
#include "kernels/cuda/linear_plan.h"
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

inline constexpr int kMaxLinearTokens = 64;  // rows in one launch
inline constexpr int kMaxLinearPasses = 8;   // over the weight in one launch

// What blocks exchange their parts through. Launches on one stream may share it.
struct LinearScratch {
  float* parts = nullptr;      // (LinearPartFloats) not initialized
  int32_t* arrived = nullptr;  // (output tiles, kMaxLinearPasses) 0 before and after; if a launch
                               // was cut off, it must be zeroed
};
constexpr int64_t LinearPartFloats(int multiprocessors) {
  return int64_t{2} * multiprocessors * kMaxLinearTokens * kPackedTile;
}

struct PackedLinearArgs {
  PackedWeight weight;          // not written by the launch before: it is read while that runs
  const uint16_t* x = nullptr;  // (rows, cols) bf16
  int64_t rows = 0;             // tokens
  int64_t cols = 0;             // input features; PackedTiles(cols) == weight.layout.k_tiles
  int num_segments = 1;
  std::array<LinearSegment, kMaxGroupWeights> segments{};  // in order of first_tile, the first at 0
  LinearScratch scratch;
};

// Any number of rows; more than kMaxLinearTokens take several launches. A row's bits depend on its
// activations, the weight and the number of multiprocessors only. The format's bits must be 4 and
// 8, respectively.
void LaunchLinearW4A16(Device& device, const PackedLinearArgs& args);
void LaunchLinearW8A16(Device& device, const PackedLinearArgs& args);

// ---- The dispatch tables, for what measures their rows

struct PackedLinearParams {
  const uint8_t* records;
  const uint16_t* channel_scales;  // (padded output features), only if the format has no groups
  int record_bytes;
  int groups_per_tile;
  const uint16_t* x;
  int rows;    // <= passes * tokens of the kernel
  int passes;  // <= kMaxLinearPasses
  int cols;
  bool aligned;  // rows of x begin at multiples of 16 bytes
  int stages;    // of a warp's ring
  bool early;    // the previous kernel may still run
  LinearPlan plan;
  int num_segments;
  LinearSegment segments[kMaxGroupWeights];
  LinearScratch scratch;
};

// A kernel for formats with or without groups and zero points, up to `tokens` rows in a pass, with
// rings of 2, 3, 4 or 6 stages. All rows of a table give the same bits.
struct PackedLinearVariant {
  bool grouped;
  bool asymmetric;
  int tokens;
  int stages;
  size_t shared_bytes;
  void (*launch)(Stream&, const LaunchShape&, const PackedLinearParams&);
};
inline constexpr int kPackedLinearThreads = 256;
std::span<const PackedLinearVariant> LinearW4A16Variants();
std::span<const PackedLinearVariant> LinearW8A16Variants();

// Whether the variant is for the format and the device has the shared memory for it.
bool TakesPackedLinear(const PackedLinearVariant& variant, const PackedFormat& format,
                       const DeviceInfo& info);

// Of those that take the format, the first that has room for the rows in one pass, or else the
// first that has most; variants of a format are in order of tokens.
const PackedLinearVariant& ChoosePackedLinear(std::span<const PackedLinearVariant> variants,
                                              const PackedFormat& format, const DeviceInfo& info,
                                              int64_t rows);

// Launches of up to kMaxLinearTokens rows, each with the variant that is chosen for them.
void LaunchPackedLinear(Device& device, const PackedLinearArgs& args,
                        std::span<const PackedLinearVariant> variants);

}  // namespace nibble
