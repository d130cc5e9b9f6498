// SPDX-License-Identifier: Apache-2.0
// The instances of the attention kernel: for each KV format, by head and rows of queries. A format
// is compiled in a file of its own.
#pragma once

#include <array>
#include <cstddef>

#include "kernels/cuda/attention_kernel.h"
#include "kernels/cuda/launch.h"

namespace nibble {

// The first that fits is taken.
struct AttentionInstance {
  int32_t largest_head_dim;
  int32_t rows;  // of a block
  int32_t threads;
  bool split;           // also for sequences that are split
  size_t shared_bytes;  // that the device must have
  void (*launch)(Stream&, const LaunchShape&, const AttentionParams&);
};
using AttentionInstances = std::array<AttentionInstance, 5>;

template <KvCode kKeyCode, KvCode kValueCode, int kDim, int kParts>
constexpr AttentionInstance AttentionInstanceOf() {
  using Kernel = AttentionKernel<kKeyCode, kValueCode, kDim, kParts>;
  return {kDim,        Kernel::kRows,        Kernel::kThreads,
          kParts == 4, Kernel::kSharedBytes, &Launch<Kernel>};
}
template <KvCode k, KvCode v>
constexpr AttentionInstances AttentionInstancesOf() {
  return {AttentionInstanceOf<k, v, 64, 1>(), AttentionInstanceOf<k, v, 64, 4>(),
          AttentionInstanceOf<k, v, 128, 2>(), AttentionInstanceOf<k, v, 128, 4>(),
          AttentionInstanceOf<k, v, 256, 4>()};
}

extern const AttentionInstances kAttentionF32, kAttentionBF16, kAttentionFp8, kAttentionInt8,
    kAttentionK8V4, kAttentionInt4;

}  // namespace nibble
