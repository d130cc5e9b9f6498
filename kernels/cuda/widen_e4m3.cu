// SPDX-License-Identifier: Apache-2.0
// What a product of e4m3 needs around a product of bf16: codes widened before it, scales applied
// after it.
//
// Tiling: widening, a thread per 16 codes; scaling, a block per token. Limit: bytes (one read and
// two written for a code; four read and two or four written for a result).
#include "kernels/cuda/linear_e4m3.h"
#include "kernels/cuda/row_writer.h"
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

struct ScaleE4M3Kernel {
  using Params = ScaleE4M3Args;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t row = simt::BlockX();
    simt::WaitForPreviousKernel();
    const float token = p.token_scales[row];
    for (int64_t n = simt::Thread(); n < p.features; n += kThreads) {
      const float y = p.sums[row * p.features + n] * (token * p.scales[n]);
      StoreFloat(p.out, row * p.out_features + p.first + n, p.bias != nullptr ? y + p.bias[n] : y);
    }
    simt::StartNextKernel();
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

void LaunchScaleE4M3(Device& device, const ScaleE4M3Args& args) {
  if (args.rows == 0) return;
  LaunchShape shape;
  shape.grid_x = static_cast<int>(args.rows);
  shape.threads = ScaleE4M3Kernel::kThreads;
  Launch<ScaleE4M3Kernel>(device.stream(), shape, args);
}

}  // namespace nibble
