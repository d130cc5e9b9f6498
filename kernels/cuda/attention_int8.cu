// SPDX-License-Identifier: Apache-2.0
// Attention over pages of int8; tiling and limit are in attention_decode.h and attention_prefill.h.
#include "kernels/cuda/attention_table.h"

namespace nibble {

constinit const AttentionFormat kAttentionInt8 = AttentionFormatOf<KvCode::kInt8, KvCode::kInt8>();

}  // namespace nibble
