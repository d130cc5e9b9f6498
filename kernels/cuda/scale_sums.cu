// SPDX-License-Identifier: Apache-2.0
// Scales and bias of a product of codes.
//
// Tiling: a block per token, a thread four output features at a time. Limit: bytes: four read, from
// the second-level cache where the sums of a slice fit it, and two or four written.
#include "kernels/cuda/row_writer.h"
#include "kernels/cuda/scale_sums.h"
#include "kernels/cuda/simt.h"

namespace nibble {
namespace {

template <typename Sum>
struct ScaleSumsKernel {
  using Params = ScaleSumsArgs;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE float Scaled(const Params& p, float token, Sum sum, int64_t n) {
    const float y = static_cast<float>(sum) * (token * p.scales[n]);
    return p.bias != nullptr ? y + p.bias[n] : y;
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t row = simt::BlockX();
    simt::WaitForPreviousKernel();
    const float token = p.token_scales[row];
    const auto* sums = static_cast<const Sum*>(p.sums) + row * p.features;
    const int64_t out = row * p.out_features + p.first;
    int64_t n = simt::Thread();
    if (p.features % 4 == 0 && p.first % 4 == 0 && p.out_features % 4 == 0) {
      for (n *= 4; n < p.features; n += 4 * kThreads) {
        const auto four = *reinterpret_cast<const simt::Vec16*>(sums + n);
        float y[4];
        NIBBLE_UNROLL
        for (int e = 0; e < 4; ++e)
          y[e] = Scaled(p, token, std::bit_cast<Sum>(four.word[e]), n + e);
        if (p.out.dtype == DType::kBF16) {
          *reinterpret_cast<simt::Vec8*>(static_cast<uint16_t*>(p.out.data) + out + n) = {
              {simt::PackBF16x2(y[0], y[1]), simt::PackBF16x2(y[2], y[3])}};
        } else {
          *reinterpret_cast<simt::Vec16*>(static_cast<float*>(p.out.data) + out + n) = {
              {std::bit_cast<uint32_t>(y[0]), std::bit_cast<uint32_t>(y[1]),
               std::bit_cast<uint32_t>(y[2]), std::bit_cast<uint32_t>(y[3])}};
        }
      }
    } else {
      for (; n < p.features; n += kThreads) {
        StoreFloat(p.out, out + n, Scaled(p, token, sums[n], n));
      }
    }
    simt::StartNextKernel();
  }
};

}  // namespace

void LaunchScaleSums(Device& device, const ScaleSumsArgs& args) {
  if (args.rows == 0) return;
  LaunchShape shape;
  shape.grid_x = static_cast<int>(args.rows);
  shape.threads = ScaleSumsKernel<float>::kThreads;
  if (args.type == DType::kI32) {
    Launch<ScaleSumsKernel<int32_t>>(device.stream(), shape, args);
  } else {
    Launch<ScaleSumsKernel<float>>(device.stream(), shape, args);
  }
}

}  // namespace nibble
