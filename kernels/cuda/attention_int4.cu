// SPDX-License-Identifier: Apache-2.0
// Attention over pages of int4; tiling and limit are in attention_decode.h and attention_prefill.h.
#include "kernels/cuda/attention_table.h"

namespace nibble {

constinit const AttentionFormat kAttentionInt4 = AttentionFormatOf<KvCode::kInt4, KvCode::kInt4>();

}  // namespace nibble
