// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/peak_bf16.h"

#include <immintrin.h>

namespace nibble {

double PeakBF16Dot(int64_t iterations) {
  __m512 acc[8];
  for (int i = 0; i < 8; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512bh half = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f));
  for (int64_t n = 0; n < iterations; ++n) {
    for (int i = 0; i < 8; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], half, half);
  }
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += _mm512_reduce_add_ps(acc[i]);
  return static_cast<double>(iterations) * 8 * 32 + (sum < 0 ? 1 : 0);
}

}  // namespace nibble
