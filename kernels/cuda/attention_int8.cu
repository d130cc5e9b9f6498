// SPDX-License-Identifier: Apache-2.0
// Attention over pages of int8; tiling and limit are in attention_kernel.h.
#include "kernels/cuda/attention_table.h"

namespace nibble {

constinit const AttentionInstances kAttentionInt8 =
    AttentionInstancesOf<KvCode::kInt8, KvCode::kInt8>();

}  // namespace nibble
