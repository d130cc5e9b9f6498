// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/kv_entries.h"

#include <algorithm>

#include "kernels/cpu/tier.h"

namespace nibble {
namespace {

KvSpan SpanOf(const float* x, int count) {
  KvSpan span;
  for (int i = 0; i < count; ++i) span = Merge(span, KvSpanOf(x[i]));
  return span;
}

}  // namespace

float EncodeFp8Entry(const float* x, int dim, uint8_t* codes) {
  const KvSpan span = SpanOf(x, dim);
  const float inverse = KvFp8Inverse(span);
  for (int d = 0; d < dim; ++d) codes[d] = EncodeKvFp8(x[d], inverse);
  return KvFp8Scale(span);
}

void EncodeInt4Entry(const float* x, int dim, uint8_t* packed, KvInt4Scale* groups) {
  uint8_t codes[kMaxHeadDim];
  for (int begin = 0; begin < dim; begin += kKvInt4Group) {
    const int end = std::min(begin + kKvInt4Group, dim);
    const KvInt4Scale group = KvInt4ScaleOf(SpanOf(x + begin, end - begin));
    const float low = BF16ToF32(group.low);
    const float inverse = KvInt4Inverse(group);
    for (int d = begin; d < end; ++d) codes[d] = EncodeKvInt4(x[d], low, inverse);
    groups[begin / kKvInt4Group] = group;
  }
  for (int begin = 0; begin < dim; begin += kInt4Run) {
    const int run = std::min(kInt4Run, dim - begin);
    const int half = (run + 1) / 2;
    for (int j = 0; j < half; ++j) {
      const int high = half + j < run ? codes[begin + half + j] << 4 : 0;
      packed[begin / 2 + j] = static_cast<uint8_t>(codes[begin + j] | high);
    }
  }
}

}  // namespace nibble
