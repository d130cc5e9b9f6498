// SPDX-License-Identifier: Apache-2.0
// The scale and zero point of weights that share them, the same inline functions on host and
// device. Standard library only.
//
// Scales follow compressed-tensors: a symmetric b-bit grid spans 2^b - 1 steps, half of them on
// each side, so s = max|w| / ((2^b - 1) / 2) and the largest positive weight is cut by half a step;
// an asymmetric grid spans min..max, made to contain 0 so that 0 is a code. The largest values of
// e4m3 (448) and NF4 (1) meet max|w|.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/codec.h"

namespace nibble {

struct ScaleAndZero {
  float scale;
  int8_t zero;
};

// The value a scale has once it is stored as `type`; nested scales are coded later.
NIBBLE_HD inline float RoundToStored(double value, DType type) {
  const auto f = static_cast<float>(value);
  if (type == DType::kBF16) return RoundToBF16(f);
  if (type == DType::kF16) return F16ToF32(F32ToF16(f));
  return f;
}

// Of weights in [low, high], low <= 0 <= high, whose range is multiplied with `ratio` (0, 1]:
// symmetric s = ratio * max|w| / Scheme::span(); asymmetric s = ratio * (high - low) / (2^b - 1)
// and z = rint(-2^(b-1) - ratio * low / s). s is rounded to the stored type before z and before any
// code is chosen.
NIBBLE_HD inline ScaleAndZero RangeScale(float low, float high, const Scheme& scheme,
                                         double ratio) {
  if (scheme.symmetric()) {
    const double absmax = high > -low ? static_cast<double>(high) : -static_cast<double>(low);
    return {RoundToStored(ratio * absmax / scheme.span(), scheme.scale), 0};
  }
  const double least = scheme.code_min();
  const double most = scheme.code_max();
  const double min = ratio * low;
  const float scale = RoundToStored((ratio * high - min) / (most - least), scheme.scale);
  if (scale == 0.0f) return {0.0f, 0};
  const double zero = std::nearbyint(least - min / scale);
  return {scale, static_cast<int8_t>(zero < least ? least : zero > most ? most : zero)};
}

// The ranges that the clip search of mse_clip.cc tries, widest first: 1, 0.98, ..., 0.5.
inline constexpr int kMseClipRatios = 26;
NIBBLE_HD inline double MseClipRatio(int i) { return 1.0 - 0.02 * i; }

}  // namespace nibble
