// SPDX-License-Identifier: Apache-2.0
// The heavy parts of choosing the codes of a weight, for a device that does them faster than the
// quantizer's own code in engine/quant, which is their specification: results are the same bits.
//
// All pointers are host memory; matrices are row-major. A call returns when it is done. Every call
// may end with ResourceExhausted (the device has no room) or with the device's own error; outputs
// are undefined then. Driven by the thread that drives the Backend.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/scheme.h"

namespace nibble {

// Scales of a weight (rows, cols): one per row and group of input features.
struct ScalesView {
  const float* scale;  // (rows, groups), as stored
  const int8_t* zero;  // (rows, groups), zeros where the scheme is symmetric
};

struct WeightToRound {
  const Scheme* scheme;  // quantized
  int64_t rows;
  int64_t cols;
  const float* values;  // (rows, cols), finite
};

struct GptqCall {
  WeightToRound weight;  // columns that never saw an input are zeros
  ScalesView scales;
  const float* hessian;  // (cols, cols), symmetric; its lower triangle is read
  const float* factor;   // (cols, cols): U of the damped Hessian, rows and columns in `order`
  const int64_t* order;  // (cols): the column that is rounded i-th
  int64_t block;         // columns between two updates of the rest of the row
};

class WeightRounding {
 public:
  virtual ~WeightRounding() = default;

  // mse_clip.cc: scales of least squared error, weighed by importance (cols) or nullptr for ones.
  // Writes (rows, groups) of each.
  virtual absl::Status ClipScales(const WeightToRound& weight, const float* importance,
                                  float* scale, int8_t* zero) = 0;
  // rtn.cc: nearest codes (rows, cols) under given scales.
  virtual absl::Status NearestCodes(const WeightToRound& weight, ScalesView scales,
                                    int8_t* codes) = 0;
  // cholesky.cc: replaces h (n, n) by U with H^-1 = U^T U. False where H is not positive definite.
  virtual absl::StatusOr<bool> UpperFactorOfInverse(float* h, int64_t n) = 0;
  // gptq.cc: codes (rows, cols) that compensate each other's errors; nearest ones in rows where
  // those are better.
  virtual absl::Status GptqCodes(const GptqCall& call, int8_t* codes) = 0;
  // matrix.cc: result[i] = d_i^T H d_i for each row d_i of d (rows, cols), h symmetric, of row
  // stride ldh.
  virtual absl::Status QuadraticForm(const float* d, int64_t rows, int64_t cols, const float* h,
                                     int64_t ldh, double* result) = 0;
};

}  // namespace nibble
