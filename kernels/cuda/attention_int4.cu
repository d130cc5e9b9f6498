// SPDX-License-Identifier: Apache-2.0
// Attention over pages of int4; tiling and limit are in attention_kernel.h.
#include "kernels/cuda/attention_table.h"

namespace nibble {

constinit const AttentionInstances kAttentionInt4 =
    AttentionInstancesOf<KvCode::kInt4, KvCode::kInt4>();

}  // namespace nibble
