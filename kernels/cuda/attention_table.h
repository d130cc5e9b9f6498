// SPDX-License-Identifier: Apache-2.0
// The instances of the attention kernels: for each KV format, by head. A format is compiled in a
// file of its own.
#pragma once

#include <array>
#include <cstddef>

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/launch.h"

namespace nibble {

struct AttentionInstance {
  int max_warps;  // of a block
  int warp_rows;
  size_t (*shared_bytes)(int warps);
  void (*launch)(Stream&, const LaunchShape&, const AttentionParams&);
};
// The first of a format with a head that is long enough is taken.
struct AttentionInstances {
  int32_t largest_head_dim;
  AttentionInstance decode, prefill;
  int pairs;  // KvTile::kPairs of the values: the order of partial results
};
using AttentionFormat = std::array<AttentionInstances, 3>;

template <class Kernel>
constexpr AttentionInstance AttentionInstanceOf() {
  return {Kernel::kMaxWarps, Kernel::kWarpRows, &Kernel::SharedBytes, &Launch<Kernel>};
}
template <KvCode k, KvCode v, int kDim>
constexpr AttentionInstances AttentionInstancesOf() {
  return {kDim, AttentionInstanceOf<AttentionDecodeKernel<k, v, kDim>>(),
          AttentionInstanceOf<AttentionPrefillKernel<k, v, kDim>>(), KvTile<v, kDim>::kPairs};
}
template <KvCode k, KvCode v>
constexpr AttentionFormat AttentionFormatOf() {
  return {AttentionInstancesOf<k, v, 64>(), AttentionInstancesOf<k, v, 128>(),
          AttentionInstancesOf<k, v, 256>()};
}

extern const AttentionFormat kAttentionF32, kAttentionBF16, kAttentionFp8, kAttentionInt8,
    kAttentionK8V4, kAttentionInt4;

}  // namespace nibble
