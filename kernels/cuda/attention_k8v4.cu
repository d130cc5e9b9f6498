// SPDX-License-Identifier: Apache-2.0
// Attention over pages with keys in int8 and values in int4; tiling and limit are in
// attention_kernel.h.
#include "kernels/cuda/attention_table.h"

namespace nibble {

constinit const AttentionInstances kAttentionK8V4 =
    AttentionInstancesOf<KvCode::kInt8, KvCode::kInt4>();

}  // namespace nibble
