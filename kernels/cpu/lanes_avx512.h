// SPDX-License-Identifier: Apache-2.0
// The names of lanes_scalar.h on AVX-512 F, BW, DQ, VL and VNNI.
#pragma once

struct F {
  __m512 v;
};
struct I {
  __m512i v;
};
struct Mask {
  __mmask16 v;
};
struct Bytes {
  __m512i v;
};
struct Quad {
  __m512i v;
};

inline __mmask16 FirstLanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline F Set(float x) { return {_mm512_set1_ps(x)}; }
inline F Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F LoadN(const float* p, int n) { return {_mm512_maskz_loadu_ps(FirstLanes(n), p)}; }
inline void Store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
inline void StoreN(float* p, F a, int n) { _mm512_mask_storeu_ps(p, FirstLanes(n), a.v); }
inline F Add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F Sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F Mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F Div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F Fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F Max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F Min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F Abs(F a) { return {_mm512_abs_ps(a.v)}; }
inline Mask Less(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask Between(int begin, int end) {
  return {static_cast<__mmask16>(((1u << end) - 1u) & ~((1u << begin) - 1u))};
}
inline F Select(Mask m, F yes, F no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }

inline I SetI(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I LoadI(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline I SubI(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I MulI(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline F Convert(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I Round(F a) {
  return {_mm512_cvt_roundps_epi32(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F PowerOfTwo(I a) {
  return {
      _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(a.v, _mm512_set1_epi32(127)), 23))};
}

inline F LoadBF16(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
inline void StoreBF16(uint16_t* p, F a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, rounded, quiet)));
}
inline F LoadF16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// The exponent of e4m3 is 120 below that of f32; a subnormal is one of f32 too until it is scaled.
inline F LoadE4M3(const uint8_t* p) {
  const __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m512i magnitude = _mm512_and_si512(code, _mm512_set1_epi32(0x7f));
  const __m512i sign = _mm512_slli_epi32(_mm512_srli_epi32(code, 7), 31);
  const __m512i bits = _mm512_or_si512(sign, _mm512_slli_epi32(magnitude, 20));
  const __m512 value = _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(0x1p120f));
  const __mmask16 nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f));
  const __m512i quiet = _mm512_or_si512(sign, _mm512_set1_epi32(0x7fc00000));
  return {_mm512_mask_blend_ps(nan, value, _mm512_castsi512_ps(quiet))};
}
inline I LoadI8(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I LoadU8(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I LowNibble(I a) { return {_mm512_and_si512(a.v, _mm512_set1_epi32(15))}; }
inline I HighNibble(I a) { return {_mm512_srli_epi32(a.v, 4)}; }
inline void StoreI8(int8_t* p, I a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}

inline Bytes LoadBytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Bytes LowNibbles(Bytes a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline Bytes HighNibbles(Bytes a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}
template <int j>
inline I ByteOf(Bytes a) {
  if constexpr (j == 3) {
    return {_mm512_srli_epi32(a.v, 24)};
  } else {
    return {_mm512_and_si512(_mm512_srli_epi32(a.v, 8 * j), _mm512_set1_epi32(255))};
  }
}
inline Quad LoadQuad(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, 4);
  return {_mm512_set1_epi32(four)};
}
inline I Dot(I acc, Bytes w, Quad a) { return {_mm512_dpbusd_epi32(acc.v, w.v, a.v)}; }

// Products with weights of 4 bits. A tier may keep narrower sums for up to kNibbleRun features:
// not this one.
inline constexpr int64_t kNibbleRun = int64_t{1} << 40;
using NibbleSum = I;
using NibbleQuad = Quad;
inline NibbleSum BeginRun(I acc) { return acc; }
inline I EndRun(I, NibbleSum run) { return run; }
inline NibbleQuad LoadNibbleQuad(const int8_t* p) { return LoadQuad(p); }
inline NibbleSum DotNibbles(NibbleSum run, Bytes w, NibbleQuad a) { return Dot(run, w, a); }

inline float Sum(F a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float Largest(F a) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline int32_t SumI(I a) {
  const __m256i eight =
      _mm256_add_epi32(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1));
  const __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_srli_si128(four, 8));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_srli_si128(two, 4)));
}
inline void Prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
