// SPDX-License-Identifier: Apache-2.0
// Backend::Sample on the device. The parameters of a step are packed on the host into one array
// without pointers and uploaded once; the results come back as one array.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace nibble {

// ---- Parameters on the device

// A SamplingRow whose lists lie in the words behind the rows: at `lists` num_bias ids, num_bias
// values (f32 bits), num_banned ids, num_seen ids, num_seen counts.
struct PackedSamplingRow {
  SamplingRow row;    // without its pointers
  int64_t lists = 0;  // index into the words
};

// Bytes of the packed form of `rows`: at most sizeof(PackedSamplingRow) and 8 bytes for each bias
// and seen token and 4 for each banned one.
size_t PackedSamplingBytes(std::span<const SamplingRow> rows);
// Writes them to host memory, aligned to 8. Lists of penalties that change nothing are left out.
void PackSampling(std::span<const SamplingRow> rows, void* to);

inline constexpr int64_t kMaxSampleVocabulary = int64_t{1} << 20;

struct SampleLaunch {
  float* logits;                    // (rows, vocabulary) f32; overwritten
  int64_t rows;                     // each has blocks of its own: no row depends on the others
  int64_t vocabulary;               // 1..kMaxSampleVocabulary
  const void* packed;               // (PackedSamplingBytes) device memory
  SampleResult* results;            // (rows) device memory
  void* scratch;                    // (SampleScratchBytes) device memory, 0 before and after
  const int32_t* tokens = nullptr;  // SampleArgs::tokens
};
size_t SampleScratchBytes(const DeviceInfo& device, int64_t rows);
void LaunchSample(Device& device, const SampleLaunch& args);

// ---- What the kernel computes with

// Ascending orders are descending logits, and ascending ids where logits are equal. No NaN.
NIBBLE_HD inline uint64_t SampleOrder(float logit, uint32_t id) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);  // -0 is 0
  const uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{~ascending} << 32 | id;
}
NIBBLE_HD inline uint32_t IdOfOrder(uint64_t order) { return static_cast<uint32_t>(order); }
NIBBLE_HD inline float LogitOfOrder(uint64_t order) {
  const uint32_t ascending = ~static_cast<uint32_t>(order >> 32);
  return std::bit_cast<float>((ascending & 0x80000000u) != 0 ? ascending & 0x7fffffffu
                                                             : ~ascending);
}

// e^((logit - largest) / temperature) as a whole number of 2^-43: sums of up to 2^20 of them are
// exact, so no order of addition shows, and what truncation takes from a vocabulary of 2^18 is at
// most 3e-8 of the largest weight.
inline constexpr float kSampleOne = 0x1p43f;
NIBBLE_HD inline float SampleWeight(float logit, float largest, float temperature) {
  return std::exp((logit - largest) / temperature);
}
NIBBLE_HD inline uint64_t SampleMass(float weight) {
  const float mass = weight * kSampleOne;
  // A GPU converts to 32 bits at four times the rate, and nearly all weights are so small.
  return mass < 0x1p32f ? static_cast<uint32_t>(mass) : static_cast<uint64_t>(mass);
}

}  // namespace nibble
