// SPDX-License-Identifier: Apache-2.0
// Quantizers of the KV cache, the same inline functions on host and device. They know numbers and
// groups, not where anything lies: the layout of a block belongs to the backend.
//
// An entry is the key (after rotation) or the value of one token and kv head. The elements that
// share a scale are a group: the whole entry for int8 and fp8, kKvInt4Group elements from its start
// on for int4 (the last group may be shorter). A quantizer reduces a group to its KvSpan, derives
// the scale from it, then rounds every element:
//
//   int8  one f32 scale = absmax / 127; the codec of kernels/codec.h
//   fp8   e4m3 codes, one f32 scale = absmax / 448: without it keys beyond 448 would saturate and
//         entries of small values lose their mantissas
//   int4  unsigned codes 0..15, x ~= code * scale + low, scale and low stored as bf16; codes are
//         chosen with the stored values
//
// Bit for bit the same wherever it is compiled without contraction (nvcc: -fmad=false). A group
// that holds a value which is not finite gets a scale of NaN: it must reach the logits. NaNs are
// compared as NaNs, their payload is the device's.
#pragma once

#include <cmath>

#include "kernels/codec.h"
#include "kernels/dtype.h"
#include "kernels/ops.h"

namespace nibble {

// What a quantizer knows of a group. Merge is exact, and its order does not matter.
struct KvSpan {
  float low = INFINITY;
  float high = -INFINITY;
  bool finite = true;
};
NIBBLE_HD inline KvSpan KvSpanOf(float x) {
  return {x, x, x - x == 0.0f};  // inf - inf and NaN - NaN are NaN
}
NIBBLE_HD inline KvSpan Merge(const KvSpan& a, const KvSpan& b) {
  return {b.low < a.low ? b.low : a.low, b.high > a.high ? b.high : a.high, a.finite && b.finite};
}

// ---- int8
NIBBLE_HD inline float KvAbsMax(const KvSpan& span) {
  return span.high > -span.low ? span.high : -span.low;
}
// The stored scale; codes are EncodeInt8(x, Int8InverseScale(KvAbsMax(span))).
NIBBLE_HD inline float KvInt8Scale(const KvSpan& span) {
  return span.finite ? Int8Scale(KvAbsMax(span)) : NAN;
}

// ---- fp8
NIBBLE_HD inline float KvFp8Scale(const KvSpan& span) {
  return span.finite ? KvAbsMax(span) / kMaxE4M3 : NAN;
}
// 0, which makes zeros of everything, below 1e-36, where the quotient would overflow.
NIBBLE_HD inline float KvFp8Inverse(const KvSpan& span) {
  return KvAbsMax(span) > 1e-36f ? kMaxE4M3 / KvAbsMax(span) : 0.0f;
}
NIBBLE_HD inline uint8_t EncodeKvFp8(float x, float inverse) { return F32ToE4M3(x * inverse); }

// ---- int4
struct KvInt4Scale {  // as stored: two bfloat16
  uint16_t scale;
  uint16_t low;
};
NIBBLE_HD inline KvInt4Scale KvInt4ScaleOf(const KvSpan& span) {
  if (!span.finite) return {0x7fc0, 0x7fc0};
  const uint16_t low = F32ToBF16(span.low + 0.0f);  // never -0
  // bf16 may round the lowest of nearly equal values above them all.
  const float range = span.high - BF16ToF32(low);
  return {F32ToBF16(range > 0.0f ? range / 15.0f : 0.0f), low};
}
// What elements are multiplied with; 0 for scale 0, a group of equal values.
NIBBLE_HD inline float KvInt4Inverse(KvInt4Scale group) {
  const float scale = BF16ToF32(group.scale);
  return scale > 0.0f ? 1.0f / scale : 0.0f;
}
NIBBLE_HD inline uint8_t EncodeKvInt4(float x, float low, float inverse) {
  const float q = (x - low) * inverse;
  if (!(q > 0.0f)) return 0;  // Also NaN.
  return static_cast<uint8_t>(std::nearbyint(q < 15.0f ? q : 15.0f));
}
NIBBLE_HD inline float DecodeKvInt4(uint8_t code, KvInt4Scale group) {
  return std::fma(static_cast<float>(code), BF16ToF32(group.scale), BF16ToF32(group.low));
}

}  // namespace nibble
