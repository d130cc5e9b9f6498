// SPDX-License-Identifier: Apache-2.0
// Attention over pages with keys in int8 and values in int4; tiling and limit are in
// attention_decode.h and attention_prefill.h.
#include "kernels/cuda/attention_table.h"

namespace nibble {

constinit const AttentionFormat kAttentionK8V4 = AttentionFormatOf<KvCode::kInt8, KvCode::kInt4>();

}  // namespace nibble
