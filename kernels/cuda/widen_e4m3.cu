// SPDX-License-Identifier: Apache-2.0
// Codes of e4m3 as bf16, for the library's product of bf16.
//
// Tiling: a thread per 16 codes. Limit: bytes, one read and two written for a code.
#include "kernels/cuda/linear_e4m3.h"
#include "kernels/cuda/simt.h"

namespace nibble {
namespace {

struct WidenE4M3Params {
  const uint8_t* codes;
  int64_t count;
  uint16_t* out;
};

struct WidenE4M3Kernel {
  using Params = WidenE4M3Params;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    simt::WaitForPreviousKernel();
    const int64_t stride = int64_t{simt::GridX()} * kThreads * 16;
    int64_t at = (int64_t{simt::BlockX()} * kThreads + simt::Thread()) * 16;
    for (; at + 16 <= p.count; at += stride) {
      const auto codes = *reinterpret_cast<const simt::Vec16*>(p.codes + at);
      simt::Vec16 halves[2];
      NIBBLE_UNROLL
      for (int i = 0; i < 8; ++i) {
        const uint32_t pair = codes.word[i / 2] >> (16 * (i % 2));
        halves[i / 4].word[i % 4] = Widen(pair) | static_cast<uint32_t>(Widen(pair >> 8)) << 16;
      }
      auto* to = reinterpret_cast<simt::Vec16*>(p.out + at);
      to[0] = halves[0];
      to[1] = halves[1];
    }
    for (; at < p.count; ++at) p.out[at] = Widen(p.codes[at]);
    simt::StartNextKernel();
  }

  static NIBBLE_DEVICE uint16_t Widen(uint32_t code) {
    return F32ToBF16(E4M3ToF32(static_cast<uint8_t>(code)));
  }
};

}  // namespace

void LaunchWidenE4M3(Device& device, const uint8_t* codes, int64_t count, uint16_t* out) {
  if (count == 0) return;
  constexpr int64_t kPerBlock = WidenE4M3Kernel::kThreads * 16;
  constexpr int64_t kMostBlocks = int64_t{1} << 16;
  const int64_t blocks = (count + kPerBlock - 1) / kPerBlock;
  LaunchShape shape;
  shape.grid_x = static_cast<int>(blocks < kMostBlocks ? blocks : kMostBlocks);
  shape.threads = WidenE4M3Kernel::kThreads;
  Launch<WidenE4M3Kernel>(device.stream(), shape, {codes, count, out});
}

}  // namespace nibble
