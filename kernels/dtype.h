// SPDX-License-Identifier: Apache-2.0
// Element types, and the conversions between the floating-point ones.
// Standard library only: this header compiles for host and device.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#ifdef __CUDACC__
#define NIBBLE_HD __host__ __device__
#else
#define NIBBLE_HD
#endif

namespace nibble {

enum class DType : uint8_t {
  kNone,
  kF32,
  kF16,
  kBF16,
  kF8E4M3,
  kF64,
  kI64,
  kI32,
  kI16,
  kI8,
  kU8,
  kBool,
  kI4,
  kI3,
  kI2,
  kNF4
};

// Bits of one element; what has fewer than 8 exists only inside packed words.
constexpr int BitsOf(DType type) {
  switch (type) {
    case DType::kNone:
      return 0;
    case DType::kF64:
    case DType::kI64:
      return 64;
    case DType::kF32:
    case DType::kI32:
      return 32;
    case DType::kF16:
    case DType::kBF16:
    case DType::kI16:
      return 16;
    case DType::kF8E4M3:
    case DType::kI8:
    case DType::kU8:
    case DType::kBool:
      return 8;
    case DType::kI4:
    case DType::kNF4:
      return 4;
    case DType::kI3:
      return 3;
    case DType::kI2:
      return 2;
  }
  return 0;
}

// Bytes of one element; 0 for kNone and for types that only exist packed.
constexpr size_t BytesOf(DType type) { return static_cast<size_t>(BitsOf(type) / 8); }

// The name of the type in a safetensors header ("F32", "BF16", ...); "" where there is none.
constexpr std::string_view SafetensorsName(DType type) {
  switch (type) {
    case DType::kF64:
      return "F64";
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kF8E4M3:
      return "F8_E4M3";
    case DType::kI64:
      return "I64";
    case DType::kI32:
      return "I32";
    case DType::kI16:
      return "I16";
    case DType::kI8:
      return "I8";
    case DType::kU8:
      return "U8";
    case DType::kBool:
      return "BOOL";
    case DType::kNone:
    case DType::kI4:
    case DType::kI3:
    case DType::kI2:
    case DType::kNF4:
      return "";
  }
  return "";
}

NIBBLE_HD inline float BF16ToF32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Round to nearest, ties to even; NaN stays NaN (quiet).
NIBBLE_HD inline uint16_t F32ToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

NIBBLE_HD inline float F16ToF32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  if (mantissa == 0) return std::bit_cast<float>(sign);
  uint32_t shift = 0;  // Subnormal: normalise.
  while ((mantissa & 0x400u) == 0) {
    mantissa <<= 1;
    ++shift;
  }
  return std::bit_cast<float>(sign | ((113 - shift) << 23) | ((mantissa & 0x3ffu) << 13));
}

// Round to nearest, ties to even; overflow gives infinity, NaN stays NaN (quiet).
NIBBLE_HD inline uint16_t F32ToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x33000001u) return sign;  // At most half of the smallest subnormal.
  int exponent = static_cast<int>(magnitude >> 23) - 112;
  uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  int drop = 13;
  if (exponent < 1) {
    drop += 1 - exponent;
    exponent = 0;
  }
  const uint32_t kept = mantissa >> drop;
  const uint32_t rest = mantissa & ((1u << drop) - 1);
  const uint32_t half = 1u << (drop - 1);
  const uint32_t rounded = kept + ((rest > half || (rest == half && (kept & 1u))) ? 1u : 0u);
  // The implicit bit of a normal number is added to the exponent field, so a carry moves up by
  // itself.
  const uint32_t base = exponent == 0 ? 0u : static_cast<uint32_t>(exponent - 1) << 10;
  return static_cast<uint16_t>(sign | (base + rounded));
}

// E4M3 has 1 sign, 4 exponent (bias 7) and 3 mantissa bits, no infinities and one NaN of each sign
// (all other bits set); its largest value is 448, its smallest 2^-9. Source: Micikevicius et al.
// 2022, "FP8 Formats for Deep Learning", arXiv 2209.05433, table 1.
inline constexpr float kMaxE4M3 = 448.0f;

NIBBLE_HD inline float E4M3ToF32(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t magnitude = code & 0x7fu;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (magnitude < 8) {  // Subnormal: a multiple of 2^-9.
    return std::bit_cast<float>(sign |
                                std::bit_cast<uint32_t>(static_cast<float>(magnitude) / 512.0f));
  }
  return std::bit_cast<float>(sign | ((magnitude + (120u << 3)) << 20));
}

// Round to nearest, ties to even; what is larger than 448, infinity too, becomes 448 (saturation);
// NaN stays NaN, every value keeps its sign, -0 too.
NIBBLE_HD inline uint8_t F32ToE4M3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
  if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);  // 448
  if (magnitude < 0x3c800000u) {  // Below 2^-6; the neighbours of 2^14 are 2^-9 apart.
    const float sum = std::bit_cast<float>(magnitude) + 16384.0f;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(sum) & 0xfu));
  }
  // A carry out of the mantissa moves up into the exponent by itself.
  const uint32_t rounded = (magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
  return static_cast<uint8_t>(sign | (rounded - (120u << 3)));
}

}  // namespace nibble
