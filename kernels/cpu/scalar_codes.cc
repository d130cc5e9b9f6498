// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/scalar_codes.h"

#include <algorithm>

#include "kernels/codec.h"

namespace nibble {

void ExpandStored(const PackedMatrix& w, int64_t panel, int64_t k, int64_t count, float* out) {
  const Scheme& scheme = *w.stored.scheme;
  const int64_t first = panel * kPanelRows;
  const int64_t rows = std::min<int64_t>(kPanelRows, w.rows - first);
  if (rows < kPanelRows) std::fill(out, out + count * kPanelRows, 0.0f);
  for (int64_t lane = 0; lane < rows; ++lane) {
    const int64_t n = first + lane;
    for (int64_t i = 0; i < count;) {
      const int64_t group = (k + i) / w.group;
      const int64_t end = std::min(count, (group + 1) * w.group - k);
      const float scale = ReadScale(w.stored, n, group);
      const int zero = ReadZero(w.stored, n, group);
      for (; i < end; ++i) {
        out[i * kPanelRows + lane] =
            DecodeWeight(scheme, ReadCode(w.stored, n, k + i), scale, zero);
      }
    }
  }
}

void EncodeE4M3(const float* x, int64_t count, float absmax, uint8_t* out) {
  const float inverse = E4M3InverseScale(absmax);
  for (int64_t i = 0; i < count; ++i) out[i] = F32ToE4M3(x[i] * inverse);
}

void DecodeE4M3(const uint8_t* codes, int64_t count, float scale, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = E4M3ToF32(codes[i]) * scale;
}

}  // namespace nibble
