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

// One value of a row, by formats without scales; the others are left to WriteRowCodes.
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

// Row `row` in every format of `out` that has scales, from its values in shared memory; the whole
// block calls it after a barrier. A warp takes a group: absmax, codes by the functions of codec.h,
// sum of int8 codes.
NIBBLE_DEVICE void WriteRowCodes(const ActSet& out, int64_t row, const float* values) {
  for (int f = 0; f < kMaxActFormats; ++f) {
    if (f >= out.count) break;
    const ActView& view = out.views[static_cast<size_t>(f)];
    const int64_t groups = view.format.GroupsPerRow(view.cols);
    if (groups == 0) continue;
    const bool e4m3 = view.format.dtype == DType::kF8E4M3;
    const int64_t width = view.format.group < 0 ? view.cols : view.format.group;
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
      const float inverse = e4m3 ? E4M3InverseScale(absmax) : Int8InverseScale(absmax);
      int32_t sum = 0;
      auto* codes = static_cast<uint8_t*>(view.data) + row * view.cols;
      for (int64_t i = begin + simt::Lane(); i < end; i += simt::kWarp) {
        if (e4m3) {
          codes[i] = F32ToE4M3(values[i] * inverse);
          continue;
        }
        const int8_t code = EncodeInt8(values[i], inverse);
        codes[i] = static_cast<uint8_t>(code);
        sum += code;
      }
      sum = simt::WarpSum(sum);
      if (simt::Lane() == 0) {
        // A value that is not finite must reach the logits: through the scale.
        view.scales[row * groups + g] = (e4m3 ? E4M3Scale(absmax) : Int8Scale(absmax)) + poison;
        if (!e4m3) view.sums[row * groups + g] = sum;
      }
    }
  }
}

// Whether a row must also lie in shared memory for WriteRowCodes.
NIBBLE_HD inline bool WantsCodes(const ActSet& out) {
  for (int f = 0; f < kMaxActFormats; ++f) {
    if (f >= out.count) break;
    const ActView& view = out.views[static_cast<size_t>(f)];
    if (view.format.GroupsPerRow(view.cols) > 0) return true;
  }
  return false;
}

}  // namespace nibble
