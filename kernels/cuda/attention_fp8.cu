// SPDX-License-Identifier: Apache-2.0
// Attention over pages of fp8; tiling and limit are in attention_kernel.h.
#include "kernels/cuda/attention_table.h"

namespace nibble {

constinit const AttentionInstances kAttentionFp8 =
    AttentionInstancesOf<KvCode::kFp8, KvCode::kFp8>();

}  // namespace nibble
