// SPDX-License-Identifier: Apache-2.0
// Attention over pages of bf16; tiling and limit are in attention_kernel.h.
#include "kernels/cuda/attention_table.h"

namespace nibble {

constinit const AttentionInstances kAttentionBF16 =
    AttentionInstancesOf<KvCode::kBF16, KvCode::kBF16>();

}  // namespace nibble
