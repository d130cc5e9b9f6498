// SPDX-License-Identifier: Apache-2.0
// Attention over pages of f32; tiling and limit are in attention_kernel.h.
#include "kernels/cuda/attention_table.h"

namespace nibble {

constinit const AttentionInstances kAttentionF32 =
    AttentionInstancesOf<KvCode::kF32, KvCode::kF32>();

}  // namespace nibble
