// SPDX-License-Identifier: Apache-2.0
// Number <-> code, the same inline functions on host and device. Everything that rounds a weight,
// an activation or a KV entry to a stored code goes through here, so the quantizer, the kernels and
// the tests agree to the bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/scheme.h"

namespace nibble {

// Reads element `i` of a plain float array of type f32, f16 or bf16.
NIBBLE_HD inline float LoadFloat(const void* data, DType type, int64_t i) {
  switch (type) {
    case DType::kF16:
      return F16ToF32(static_cast<const uint16_t*>(data)[i]);
    case DType::kBF16:
      return BF16ToF32(static_cast<const uint16_t*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

// The value a scale has once it is stored as bf16; codes are always chosen with this value.
NIBBLE_HD inline float RoundToBF16(float value) { return BF16ToF32(F32ToBF16(value)); }

// q = clamp(rint(w / s) + z): round half to even. s == 0 encodes a group of zeros: q = z.
NIBBLE_HD inline int EncodeInt(float w, float scale, int zero, int code_min, int code_max) {
  if (scale == 0.0f) return zero;
  const float q = std::nearbyint(w / scale) + static_cast<float>(zero);
  if (!(q > static_cast<float>(code_min))) return code_min;  // Also NaN.
  if (q >= static_cast<float>(code_max)) return code_max;
  return static_cast<int>(q);
}

NIBBLE_HD inline float DecodeInt(int code, float scale, int zero) {
  return static_cast<float>(code - zero) * scale;
}

// NF4, the 16 quantiles of a normal distribution of QLoRA (Dettmers et al. 2023, arXiv 2305.14314,
// appendix E); code 7 is 0. Encoding gives the nearest value, the lower one where two are as near.
inline constexpr int kNF4Zero = 7;
NIBBLE_HD inline float NF4ToF32(int code) {
  constexpr float kValues[16] = {-1.0f,
                                 -0.6961928009986877f,
                                 -0.5250730514526367f,
                                 -0.39491748809814453f,
                                 -0.28444138169288635f,
                                 -0.18477343022823334f,
                                 -0.09105003625154495f,
                                 0.0f,
                                 0.07958029955625534f,
                                 0.16093020141124725f,
                                 0.24611230194568634f,
                                 0.33791524171829224f,
                                 0.44070982933044434f,
                                 0.5626170039176941f,
                                 0.7229568362236023f,
                                 1.0f};
  return kValues[code];
}
NIBBLE_HD inline int F32ToNF4(float value) {
  int code = 0;
  for (int i = 0; i < 15; ++i) {
    code += value > (NF4ToF32(i) + NF4ToF32(i + 1)) * 0.5f ? 1 : 0;
  }
  return code;
}

// The signed 8-bit dynamic type that nested scales are stored in (bitsandbytes,
// create_dynamic_map): code 127 is 0, 255 is 1; the 127 codes above 127 are, for i = 0..6, the
// centres of 2^i equal parts of [0.1, 1], times 10^(i - 6); those below mirror them. Values are
// rounded once, to f32.
NIBBLE_HD inline float Dynamic8ToF32(uint8_t code) {
  if (code == 127) return 0.0f;
  if (code == 255) return 1.0f;
  const int rank = code > 127 ? code - 127 : 127 - code;  // 1..127
  int parts = 1;
  int denominator = 20000000;  // 20 parts 10^(6 - i)
  while (2 * parts <= rank) {
    parts *= 2;
    denominator /= 5;
  }
  // 0.1 + 0.9 (j + 0.5) / parts, over 20 parts.
  const int numerator = 2 * parts + 18 * (rank - parts) + 9;
  const float value = static_cast<float>(numerator) / static_cast<float>(denominator);
  return code > 127 ? value : -value;
}
// The nearest value, the lower one where two are as near.
NIBBLE_HD inline uint8_t F32ToDynamic8(float value) {
  int code = 0;
  for (int step = 128; step > 0; step /= 2) {
    const float below = Dynamic8ToF32(static_cast<uint8_t>(code + step - 1));
    const float above = Dynamic8ToF32(static_cast<uint8_t>(code + step));
    if (value > (below + above) * 0.5f) code += step;
  }
  return static_cast<uint8_t>(code);
}

// A weight to the nearest code of its scheme, and back. Scale 0 encodes a group of zeros. Codes are
// in code_min()..code_max(); what lies beyond the largest value gets its code.
NIBBLE_HD inline int EncodeWeight(const Scheme& scheme, float w, float scale, int zero) {
  switch (scheme.code) {
    case DType::kNF4:
      return scale == 0.0f ? kNF4Zero : F32ToNF4(w / scale);
    case DType::kF8E4M3:
      return scale == 0.0f ? 0 : static_cast<int8_t>(F32ToE4M3(w / scale));
    default:
      return EncodeInt(w, scale, zero, scheme.code_min(), scheme.code_max());
  }
}
NIBBLE_HD inline float DecodeWeight(const Scheme& scheme, int code, float scale, int zero) {
  switch (scheme.code) {
    case DType::kNF4:
      return NF4ToF32(code) * scale;
    case DType::kF8E4M3:
      return E4M3ToF32(static_cast<uint8_t>(code)) * scale;
    default:
      return DecodeInt(code, scale, zero);
  }
}

// Element `i` of an LSB-first stream of `bits`-wide unsigned codes in little-endian 32-bit words.
// An element may straddle two words (bits = 3, 5, 6, 7).
NIBBLE_HD inline uint32_t ReadBits(const uint32_t* words, int64_t i, int bits) {
  const int64_t bit = i * bits;
  const int64_t word = bit >> 5;
  const int shift = static_cast<int>(bit & 31);
  uint32_t value = words[word] >> shift;
  if (shift + bits > 32) value |= words[word + 1] << (32 - shift);
  return value & ((1u << bits) - 1u);
}

// Writes element `i`; the bits it covers must be zero before.
NIBBLE_HD inline void WriteBits(uint32_t* words, int64_t i, int bits, uint32_t value) {
  const int64_t bit = i * bits;
  const int64_t word = bit >> 5;
  const int shift = static_cast<int>(bit & 31);
  words[word] |= value << shift;
  if (shift + bits > 32) words[word + 1] |= value >> (32 - shift);
}

// Words of one packed row.
constexpr int64_t PackedWords(int64_t elements, int bits) { return (elements * bits + 31) / 32; }

// The code of weight (n, k), in code_min()..code_max().
NIBBLE_HD inline int ReadCode(const WeightView& w, int64_t n, int64_t k) {
  const int bits = w.scheme->bits();
  if (w.scheme->container == Container::kBytes) {
    return static_cast<const int8_t*>(w.codes)[n * w.cols + k];
  }
  const auto* row = static_cast<const uint32_t*>(w.codes) + n * PackedWords(w.cols, bits);
  return static_cast<int>(ReadBits(row, k, bits)) + w.scheme->code_min();
}

NIBBLE_HD inline float ReadScale(const WeightView& w, int64_t n, int64_t group) {
  const int64_t i = n * w.scheme->GroupsPerRow(w.cols) + group;
  if (!w.scheme->nested()) return LoadFloat(w.scales, w.scheme->scale, i);
  const float value = Dynamic8ToF32(static_cast<const uint8_t*>(w.scales)[i]);
  return std::fma(value, w.nested[1 + i / kNestedGroup], w.nested[0]);
}

// Zero points are a bit stream along the output axis: its words are the rows of column `group`.
NIBBLE_HD inline int ReadZero(const WeightView& w, int64_t n, int64_t group) {
  if (w.scheme->symmetric()) return 0;
  const int bits = BitsOf(w.scheme->zero);
  const int64_t groups = w.scheme->GroupsPerRow(w.cols);
  const auto* words = static_cast<const uint32_t*>(w.zeros);
  const int64_t bit = n * bits;
  const uint32_t* word = words + (bit >> 5) * groups + group;
  const int shift = static_cast<int>(bit & 31);
  uint32_t value = word[0] >> shift;
  if (shift + bits > 32) value |= word[groups] << (32 - shift);
  return static_cast<int>(value & ((1u << bits) - 1u)) - (1 << (bits - 1));
}

// The place of feature k among `count` ascending outlier features, or -1.
NIBBLE_HD inline int64_t FindOutlier(const int32_t* features, int64_t count, int64_t k) {
  int64_t first = 0;
  for (int64_t left = count; left > 0;) {
    const int64_t half = left / 2;
    const bool before = features[first + half] < k;
    first = before ? first + half + 1 : first;
    left = before ? left - half - 1 : half;
  }
  return first < count && features[first] == k ? first : -1;
}

// The float value of weight (n, k): the specification of every kernel.
NIBBLE_HD inline float ReadWeight(const WeightView& w, int64_t n, int64_t k) {
  if (!w.scheme->quantized()) return LoadFloat(w.codes, w.scheme->code, n * w.cols + k);
  if (w.outliers > 0) {
    const int64_t i = FindOutlier(w.outlier_features, w.outliers, k);
    if (i >= 0) return BF16ToF32(w.outlier_weights[n * w.outliers + i]);
  }
  const int64_t group = k / w.scheme->GroupWidth(w.cols);
  return DecodeWeight(*w.scheme, ReadCode(w, n, k), ReadScale(w, n, group), ReadZero(w, n, group));
}

// Symmetric int8 quantization of `count` activations that share one scale: scale = absmax / 127,
// q = rint(x / scale). An all-zero span gets scale 0. Used for W8A8 tokens, for the group-quantized
// activations of the fast mode and for int8 KV entries.
NIBBLE_HD inline float Int8Scale(float absmax) { return absmax / 127.0f; }
NIBBLE_HD inline int8_t EncodeInt8(float x, float inverse_scale) {
  const float q = x * inverse_scale;
  if (!(q > -127.0f)) return -127;  // Also NaN: 0 times an inverse that overflowed.
  return static_cast<int8_t>(std::nearbyint(q < 127.0f ? q : 127.0f));
}
// inverse of a scale for EncodeInt8; 0 for scale 0 so that zeros stay zeros.
NIBBLE_HD inline float Int8InverseScale(float absmax) {
  return absmax > 0.0f ? 127.0f / absmax : 0.0f;
}

// e4m3 quantization of a span of activations or KV entries that share one scale: scale = absmax /
// 448, code = F32ToE4M3(x * inverse). The inverse is 0 for a span of zeros, and for one so small
// that it would overflow: its codes are zeros.
NIBBLE_HD inline float E4M3Scale(float absmax) { return absmax / kMaxE4M3; }
NIBBLE_HD inline float E4M3InverseScale(float absmax) {
  return absmax > 1e-30f ? kMaxE4M3 / absmax : 0.0f;
}

}  // namespace nibble
