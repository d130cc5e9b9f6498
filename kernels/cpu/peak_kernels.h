// SPDX-License-Identifier: Apache-2.0
// Loops that stay in registers: the arithmetic ceilings. Included inside the namespace of a tier.
#pragma once

inline double PeakInt8(int64_t iterations) {
  I acc[8];
  for (int i = 0; i < 8; ++i) acc[i] = SetI(i);
  uint8_t bytes[64];
  for (int i = 0; i < 64; ++i) bytes[i] = static_cast<uint8_t>(i);
  const Bytes w = LoadBytes(bytes);
  const int8_t four[4] = {1, 2, 3, 4};
  const Quad a = LoadQuad(four);
  for (int64_t n = 0; n < iterations; ++n) {
    for (int i = 0; i < 8; ++i) acc[i] = Dot(acc[i], w, a);
  }
  int32_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += SumI(acc[i]) & 1;
  return static_cast<double>(iterations) * 8 * 64 + (sum & 1);
}

// Single-precision multiply-adds: the ceiling of bf16 weights too, which are expanded.
inline double PeakF32(int64_t iterations) {
  F acc[8];
  for (int i = 0; i < 8; ++i) acc[i] = Set(static_cast<float>(i));
  const F w = Set(0.5f);
  for (int64_t n = 0; n < iterations; ++n) {
    for (int i = 0; i < 8; ++i) acc[i] = Fma(acc[i], w, w);
  }
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += Sum(acc[i]);
  return static_cast<double>(iterations) * 8 * 16 + (sum > 1e30f ? 1 : 0);
}

// Reads memory as fast as it comes.
inline uint64_t ReadWords(const uint8_t* data, int64_t bytes) {
  I acc[4] = {SetI(0), SetI(0), SetI(0), SetI(0)};
  for (int64_t i = 0; i < bytes; i += 256) {
    for (int v = 0; v < 4; ++v) {
      const auto* words = reinterpret_cast<const int32_t*>(data + i + 64 * v);
      acc[v] = SubI(acc[v], LoadI(words));
    }
    Prefetch(data + i + kPrefetchBytes);
  }
  return static_cast<uint64_t>(SumI(acc[0]) + int64_t{SumI(acc[1])} + SumI(acc[2]) + SumI(acc[3]));
}
