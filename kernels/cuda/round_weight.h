// SPDX-License-Identifier: Apache-2.0
// Scales and codes of weights, to the bit those of engine/quant: span_scale.h and codec.h choose
// them. Device memory throughout.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/scheme.h"

namespace nibble {

// The clip search of engine/quant/mse_clip.cc.
struct ClipScalesArgs {
  Scheme scheme;
  int64_t rows;
  int64_t cols;
  const float* weight;      // (rows, cols)
  const float* importance;  // (cols) or nullptr
  float* scale;             // (rows, groups)
  int8_t* zero;             // (rows, groups)
};
void LaunchClipScales(Device& device, const ClipScalesArgs& args);

// Nearest codes under given scales, and what they are wrong by.
struct NearestArgs {
  Scheme scheme;
  int64_t rows;
  int64_t cols;
  const float* weight;  // (rows, cols)
  const float* scale;   // (rows, groups)
  const int8_t* zero;   // (rows, groups)
  int8_t* codes;        // (rows, cols) or nullptr
  float* error;         // (rows, cols) or nullptr: weight - value
  // Both or neither (rows): rows with own <= other are left as they are.
  const double* own;
  const double* other;
};
void LaunchNearest(Device& device, const NearestArgs& args);

// to_ri = from_r,order(i), both (rows, cols).
struct GatherColumnsArgs {
  const float* from;
  const int64_t* order;
  float* to;
  int64_t rows;
  int64_t cols;
};
void LaunchGatherColumns(Device& device, const GatherColumnsArgs& args);

// GPTQ's loop (engine/quant/gptq.cc) over columns [first, first + count), in order, of every row.
inline constexpr int kGptqColumns = 128;
struct GptqColumnsArgs {
  Scheme scheme;
  int64_t rows;
  int64_t cols;
  const float* weight;   // (rows, cols)
  const float* scale;    // (rows, groups)
  const int8_t* zero;    // (rows, groups)
  const float* work;     // (rows, cols): weights in order, with the updates of earlier columns
  const float* factor;   // (cols, cols), rows and columns in order
  const int64_t* order;  // (cols)
  int64_t first;
  int64_t count;  // <= kGptqColumns
  int8_t* codes;  // (rows, cols); as error, columns in their original places
  float* error;   // (rows, cols): weight - value
  float* update;  // (rows, update_stride): what later columns are to receive, of column first + i
  int64_t update_stride;
};
void LaunchGptqColumns(Device& device, const GptqColumnsArgs& args);

}  // namespace nibble
