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

// The signed code of weight (n, k).
NIBBLE_HD inline int ReadCode(const WeightView& w, int64_t n, int64_t k) {
  const int bits = w.scheme->bits();
  if (w.scheme->container == Container::kBytes) {
    return static_cast<const int8_t*>(w.codes)[n * w.cols + k];
  }
  const auto* row = static_cast<const uint32_t*>(w.codes) + n * PackedWords(w.cols, bits);
  return static_cast<int>(ReadBits(row, k, bits)) - (1 << (bits - 1));
}

NIBBLE_HD inline float ReadScale(const WeightView& w, int64_t n, int64_t group) {
  return LoadFloat(w.scales, w.scheme->scale, n * w.scheme->GroupsPerRow(w.cols) + group);
}

// Zero points are packed along the output axis: word (n * bits / 32) of column `group`.
NIBBLE_HD inline int ReadZero(const WeightView& w, int64_t n, int64_t group) {
  if (w.scheme->symmetric()) return 0;
  const int bits = BitsOf(w.scheme->zero);
  const int64_t groups = w.scheme->GroupsPerRow(w.cols);
  const auto* words = static_cast<const uint32_t*>(w.zeros);
  const int64_t bit = n * bits;  // bits divides 32 for every zero type in the table
  const uint32_t word = words[(bit >> 5) * groups + group];
  return static_cast<int>((word >> (bit & 31)) & ((1u << bits) - 1u)) - (1 << (bits - 1));
}

// The float value of weight (n, k): the specification of every kernel.
NIBBLE_HD inline float ReadWeight(const WeightView& w, int64_t n, int64_t k) {
  if (!w.scheme->quantized()) return LoadFloat(w.codes, w.scheme->code, n * w.cols + k);
  const int64_t group = k / w.scheme->GroupWidth(w.cols);
  return DecodeInt(ReadCode(w, n, k), ReadScale(w, n, group), ReadZero(w, n, group));
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
