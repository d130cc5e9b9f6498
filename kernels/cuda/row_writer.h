// SPDX-License-Identifier: Apache-2.0
// Writes rows of activations in the formats that a linear wants; the tail of every kernel that
// produces activations.
#pragma once

#include "kernels/codec.h"
#include "kernels/cuda/simt.h"
#include "kernels/ops.h"

namespace nibble {

NIBBLE_DEVICE void StoreFloat(const Floats& out, int64_t at, float value) {
  if (out.dtype == DType::kBF16) {
    static_cast<uint16_t*>(out.data)[at] = F32ToBF16(value);
  } else {
    static_cast<float*>(out.data)[at] = value;
  }
}

// One value of a row, by plain formats; kI8 is left to WriteRowInt8.
NIBBLE_DEVICE void WriteRowFloat(const ActSet& out, int64_t row, int64_t column, float value) {
  for (int f = 0; f < kMaxActFormats; ++f) {
    if (f >= out.count) break;
    const ActView& view = out.views[static_cast<size_t>(f)];
    const int64_t at = row * view.cols + column;
    if (view.format.dtype == DType::kF32) {
      static_cast<float*>(view.data)[at] = value;
    } else if (view.format.dtype == DType::kBF16) {
      static_cast<uint16_t*>(view.data)[at] = F32ToBF16(value);
    }
  }
}

// Row `row` in every kI8 format of `out`, from its values in shared memory; the whole block calls
// it after a barrier. A warp takes a group: absmax, codes as EncodeInt8, sum of the codes.
NIBBLE_DEVICE void WriteRowInt8(const ActSet& out, int64_t row, const float* values) {
  for (int f = 0; f < kMaxActFormats; ++f) {
    if (f >= out.count) break;
    const ActView& view = out.views[static_cast<size_t>(f)];
    if (view.format.dtype != DType::kI8) continue;
    const int64_t width = view.format.group < 0 ? view.cols : view.format.group;
    const int64_t groups = view.format.GroupsPerRow(view.cols);
    const int warps = simt::Threads() / simt::kWarp;
    for (int64_t g = simt::WarpIndex(); g < groups; g += warps) {
      const int64_t begin = g * width;
      const int64_t end = begin + width < view.cols ? begin + width : view.cols;
      float absmax = 0.0f, poison = 0.0f;
      for (int64_t i = begin + simt::Lane(); i < end; i += simt::kWarp) {
        const float size = std::fabs(values[i]);
        absmax = size > absmax ? size : absmax;
        poison = std::fma(values[i], 0.0f, poison);
      }
      absmax = simt::WarpMax(absmax);
      poison = simt::WarpSum(poison);
      const float inverse = Int8InverseScale(absmax);
      int32_t sum = 0;
      auto* codes = static_cast<int8_t*>(view.data) + row * view.cols;
      for (int64_t i = begin + simt::Lane(); i < end; i += simt::kWarp) {
        const int8_t code = EncodeInt8(values[i], inverse);
        codes[i] = code;
        sum += code;
      }
      sum = simt::WarpSum(sum);
      if (simt::Lane() == 0) {
        // A value that is not finite has no code: it must reach the logits through the scale.
        view.scales[row * groups + g] = Int8Scale(absmax) + poison;
        view.sums[row * groups + g] = sum;
      }
    }
  }
}

// Whether a row must also lie in shared memory for WriteRowInt8.
NIBBLE_HD inline bool WantsInt8(const ActSet& out) {
  for (int f = 0; f < kMaxActFormats; ++f) {
    if (f < out.count && out.views[static_cast<size_t>(f)].format.dtype == DType::kI8) return true;
  }
  return false;
}

}  // namespace nibble
