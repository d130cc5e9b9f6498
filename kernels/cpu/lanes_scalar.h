// SPDX-License-Identifier: Apache-2.0
// Sixteen lanes in plain C++: the reference for lanes_avx2.h and lanes_avx512.h, which define the
// same names with the same results to the bit. Included by one translation unit per tier, inside
// that tier's namespace.
#pragma once

struct F {
  float v[16];
};
struct I {
  int32_t v[16];
};
struct Mask {
  bool v[16];
};
// 64 weight bytes: byte 4 * lane + j belongs to input feature j of that lane's output row.
struct Bytes {
  uint8_t v[64];
};
// Four int8 activations that every lane multiplies with.
struct Quad {
  int32_t v[4];
};

#define NIBBLE_LANES(expression)                      \
  for (int i = 0; i < 16; ++i) r.v[i] = (expression); \
  return r

inline F Set(float x) {
  F r;
  NIBBLE_LANES(x);
}
inline F Load(const float* p) {
  F r;
  NIBBLE_LANES(p[i]);
}
// Lanes from n on are zero and their memory is not read.
inline F LoadN(const float* p, int n) {
  F r;
  NIBBLE_LANES(i < n ? p[i] : 0.0f);
}
inline void Store(float* p, F a) { memcpy(p, a.v, sizeof(a.v)); }
inline void StoreN(float* p, F a, int n) {
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
}
inline F Add(F a, F b) {
  F r;
  NIBBLE_LANES(a.v[i] + b.v[i]);
}
inline F Sub(F a, F b) {
  F r;
  NIBBLE_LANES(a.v[i] - b.v[i]);
}
inline F Mul(F a, F b) {
  F r;
  NIBBLE_LANES(a.v[i] * b.v[i]);
}
inline F Div(F a, F b) {
  F r;
  NIBBLE_LANES(a.v[i] / b.v[i]);
}
inline F Fma(F a, F b, F c) {
  F r;
  NIBBLE_LANES(__builtin_fmaf(a.v[i], b.v[i], c.v[i]));
}
// b where a or b is NaN, as the machine instructions do.
inline F Max(F a, F b) {
  F r;
  NIBBLE_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
inline F Min(F a, F b) {
  F r;
  NIBBLE_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]);
}
inline F Abs(F a) {
  F r;
  NIBBLE_LANES(__builtin_fabsf(a.v[i]));
}
inline Mask Less(F a, F b) {
  Mask r;
  NIBBLE_LANES(a.v[i] < b.v[i]);
}
// First lanes [begin, end) of the sixteen.
inline Mask Between(int begin, int end) {
  Mask r;
  NIBBLE_LANES(begin <= i && i < end);
}
inline F Select(Mask m, F yes, F no) {
  F r;
  NIBBLE_LANES(m.v[i] ? yes.v[i] : no.v[i]);
}

inline I SetI(int32_t x) {
  I r;
  NIBBLE_LANES(x);
}
inline I LoadI(const int32_t* p) {
  I r;
  NIBBLE_LANES(p[i]);
}
inline I SubI(I a, I b) {
  I r;
  NIBBLE_LANES(static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) - static_cast<uint32_t>(b.v[i])));
}
inline I MulI(I a, I b) {
  I r;
  NIBBLE_LANES(static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) * static_cast<uint32_t>(b.v[i])));
}
inline F Convert(I a) {
  F r;
  NIBBLE_LANES(static_cast<float>(a.v[i]));
}
// Nearest integer, ties to even; |a| < 2^31.
inline I Round(F a) {
  I r;
  NIBBLE_LANES(static_cast<int32_t>(__builtin_nearbyintf(a.v[i])));
}
// 2^a for -126 <= a <= 127.
inline F PowerOfTwo(I a) {
  F r;
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = static_cast<uint32_t>(a.v[i] + 127) << 23;
    memcpy(&r.v[i], &bits, 4);
  }
  return r;
}

inline F LoadBF16(const uint16_t* p) {
  F r;
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
    memcpy(&r.v[i], &bits, 4);
  }
  return r;
}
// Round to nearest even; NaN becomes quiet.
inline void StoreBF16(uint16_t* p, F a) {
  for (int i = 0; i < 16; ++i) p[i] = F32ToBF16(a.v[i]);
}
inline F LoadF16(const uint16_t* p) {
  F r;
  NIBBLE_LANES(F16ToF32(p[i]));
}
inline F LoadE4M3(const uint8_t* p) {
  F r;
  NIBBLE_LANES(E4M3ToF32(p[i]));
}
inline I LoadI8(const int8_t* p) {
  I r;
  NIBBLE_LANES(p[i]);
}
inline I LoadU8(const uint8_t* p) {
  I r;
  NIBBLE_LANES(p[i]);
}
// The low and the high four bits of lanes of 0..255.
inline I LowNibble(I a) {
  I r;
  NIBBLE_LANES(a.v[i] & 15);
}
inline I HighNibble(I a) {
  I r;
  NIBBLE_LANES(a.v[i] >> 4);
}
// Lanes hold values of -128..127.
inline void StoreI8(int8_t* p, I a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}

inline Bytes LoadBytes(const uint8_t* p) {
  Bytes r;
  memcpy(r.v, p, 64);
  return r;
}
inline Bytes LowNibbles(Bytes a) {
  for (uint8_t& b : a.v) b &= 15;
  return a;
}
inline Bytes HighNibbles(Bytes a) {
  for (uint8_t& b : a.v) b = static_cast<uint8_t>(b >> 4);
  return a;
}
// Byte j of every lane.
template <int j>
inline I ByteOf(Bytes a) {
  I r;
  NIBBLE_LANES(a.v[4 * i + j]);
}
inline Quad LoadQuad(const int8_t* p) { return Quad{{p[0], p[1], p[2], p[3]}}; }
// acc + sum over j of w[j] * a[j], modulo 2^32.
inline I Dot(I acc, Bytes w, Quad a) {
  for (int i = 0; i < 16; ++i) {
    int32_t sum = 0;
    for (int j = 0; j < 4; ++j) sum += w.v[4 * i + j] * a.v[j];
    acc.v[i] = static_cast<int32_t>(static_cast<uint32_t>(acc.v[i]) + static_cast<uint32_t>(sum));
  }
  return acc;
}

// Products with weights of 4 bits. A tier may keep narrower sums for up to kNibbleRun features:
// BeginRun before, EndRun after.
inline constexpr int64_t kNibbleRun = int64_t{1} << 40;
using NibbleSum = I;
using NibbleQuad = Quad;
inline NibbleSum BeginRun(I acc) { return acc; }
inline I EndRun(I, NibbleSum run) { return run; }
inline NibbleQuad LoadNibbleQuad(const int8_t* p) { return LoadQuad(p); }
inline NibbleSum DotNibbles(NibbleSum run, Bytes w, NibbleQuad a) { return Dot(run, w, a); }

// Lanes i and i + 8, then 4, 2, 1: the one order in which sixteen lanes are added.
inline float Sum(F a) {
  for (int width = 8; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
  }
  return a.v[0];
}
inline float Largest(F a) {
  for (int width = 8; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) a.v[i] = a.v[i] > a.v[i + width] ? a.v[i] : a.v[i + width];
  }
  return a.v[0];
}
inline int32_t SumI(I a) {
  uint32_t sum = 0;
  for (int32_t x : a.v) sum += static_cast<uint32_t>(x);
  return static_cast<int32_t>(sum);
}
inline void Prefetch(const void* p) { __builtin_prefetch(p); }

#undef NIBBLE_LANES
