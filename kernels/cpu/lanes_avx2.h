// SPDX-License-Identifier: Apache-2.0
// The names of lanes_scalar.h on AVX2, FMA and F16C: two halves of eight lanes.
#pragma once

struct F {
  __m256 lo, hi;
};
struct I {
  __m256i lo, hi;
};
struct Mask {
  __m256 lo, hi;
};
struct Bytes {
  __m256i lo, hi;
};
// Features 0 and 2, and features 1 and 3, as pairs of int16: byte products are summed by a 16-bit
// multiply-add, which cannot saturate (the 8-bit one can).
struct Quad {
  __m256i even, odd;
};

inline F Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline I LaneIndex() {
  return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
          _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
inline Mask Between(int begin, int end) {
  const __m256i first = _mm256_set1_epi32(begin - 1);
  const __m256i last = _mm256_set1_epi32(end);
  const I lane = LaneIndex();
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(lane.lo, first),
                                               _mm256_cmpgt_epi32(last, lane.lo))),
          _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(lane.hi, first),
                                               _mm256_cmpgt_epi32(last, lane.hi)))};
}
inline F LoadN(const float* p, int n) {
  const Mask m = Between(0, n);
  return {_mm256_maskload_ps(p, _mm256_castps_si256(m.lo)),
          _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.hi))};
}
inline void Store(float* p, F a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline void StoreN(float* p, F a, int n) {
  const Mask m = Between(0, n);
  _mm256_maskstore_ps(p, _mm256_castps_si256(m.lo), a.lo);
  _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.hi), a.hi);
}
inline F Add(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F Sub(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F Mul(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F Div(F a, F b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F Fma(F a, F b, F c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F Max(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F Min(F a, F b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F Abs(F a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline Mask Less(F a, F b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
inline F Select(Mask m, F yes, F no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, m.lo), _mm256_blendv_ps(no.hi, yes.hi, m.hi)};
}

inline I SetI(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I LoadI(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
inline I SubI(I a, I b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
inline I MulI(I a, I b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
inline F Convert(I a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
// The rounding mode of the thread is round-to-nearest-even: nothing in the project changes it.
inline I Round(F a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline F PowerOfTwo(I a) {
  const __m256i bias = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(a.lo, bias), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(a.hi, bias), 23))};
}

inline __m256 WidenBF16(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline F LoadBF16(const uint16_t* p) { return {WidenBF16(p), WidenBF16(p + 8)}; }
inline __m256i NarrowBF16(__m256 a) {  // In the low 16 bits of each lane.
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, quiet, nan);
}
inline void StoreBF16(uint16_t* p, F a) {
  const __m256i packed = _mm256_packus_epi32(NarrowBF16(a.lo), NarrowBF16(a.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
inline F LoadF16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
// The exponent of e4m3 is 120 below that of f32; a subnormal is one of f32 too until it is scaled.
inline __m256 WidenE4M3(__m128i bytes) {
  const __m256i code = _mm256_cvtepu8_epi32(bytes);
  const __m256i magnitude = _mm256_and_si256(code, _mm256_set1_epi32(0x7f));
  const __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(code, 7), 31);
  const __m256i bits = _mm256_or_si256(sign, _mm256_slli_epi32(magnitude, 20));
  const __m256 value = _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(0x1p120f));
  const __m256i nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
  return _mm256_blendv_ps(value,
                          _mm256_castsi256_ps(_mm256_or_si256(sign, _mm256_set1_epi32(0x7fc00000))),
                          _mm256_castsi256_ps(nan));
}
inline F LoadE4M3(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {WidenE4M3(bytes), WidenE4M3(_mm_srli_si128(bytes, 8))};
}
inline I LoadI8(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}
inline I LoadU8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
inline I LowNibble(I a) {
  const __m256i mask = _mm256_set1_epi32(15);
  return {_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
inline I HighNibble(I a) { return {_mm256_srli_epi32(a.lo, 4), _mm256_srli_epi32(a.hi, 4)}; }
inline void StoreI8(int8_t* p, I a) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

inline Bytes LoadBytes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline Bytes LowNibbles(Bytes a) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
inline Bytes HighNibbles(Bytes a) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(a.lo, 4), mask),
          _mm256_and_si256(_mm256_srli_epi16(a.hi, 4), mask)};
}
template <int j>
inline I ByteOf(Bytes a) {
  const __m256i mask = _mm256_set1_epi32(255);
  return {_mm256_and_si256(_mm256_srli_epi32(a.lo, 8 * j), mask),
          _mm256_and_si256(_mm256_srli_epi32(a.hi, 8 * j), mask)};
}
inline Quad LoadQuad(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, 4);
  const __m256i all = _mm256_set1_epi32(four);
  return {_mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8), _mm256_srai_epi16(all, 8)};
}
inline __m256i DotHalf(__m256i acc, __m256i w, Quad a) {
  const __m256i even = _mm256_and_si256(w, _mm256_set1_epi16(255));
  const __m256i odd = _mm256_srli_epi16(w, 8);
  return _mm256_add_epi32(
      acc, _mm256_add_epi32(_mm256_madd_epi16(even, a.even), _mm256_madd_epi16(odd, a.odd)));
}
inline I Dot(I acc, Bytes w, Quad a) {
  return {DotHalf(acc.lo, w.lo, a), DotHalf(acc.hi, w.hi, a)};
}

// Eight quads of 4-bit weights stay within int16: |2 * 15 * 128 * 8| = 30720.
inline constexpr int64_t kNibbleRun = 32;
struct NibbleSum {
  __m256i lo, hi;  // pairs of features
};
struct NibbleQuad {
  __m256i v;
};
inline NibbleSum BeginRun(I) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I EndRun(I acc, NibbleSum run) {
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(run.lo, ones)),
          _mm256_add_epi32(acc.hi, _mm256_madd_epi16(run.hi, ones))};
}
inline NibbleQuad LoadNibbleQuad(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, 4);
  return {_mm256_set1_epi32(four)};
}
inline NibbleSum DotNibbles(NibbleSum run, Bytes w, NibbleQuad a) {
  return {_mm256_add_epi16(run.lo, _mm256_maddubs_epi16(w.lo, a.v)),
          _mm256_add_epi16(run.hi, _mm256_maddubs_epi16(w.hi, a.v))};
}

inline float Sum(F a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float Largest(F a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline int32_t SumI(I a) {
  const __m256i eight = _mm256_add_epi32(a.lo, a.hi);
  const __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_srli_si128(four, 8));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_srli_si128(two, 4)));
}
inline void Prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
