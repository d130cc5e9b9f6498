// SPDX-License-Identifier: Apache-2.0
// Attention over pages of bf16; tiling and limit are in attention_decode.h and attention_prefill.h.
#include "kernels/cuda/attention_table.h"

namespace nibble {

constinit const AttentionFormat kAttentionBF16 = AttentionFormatOf<KvCode::kBF16, KvCode::kBF16>();

}  // namespace nibble
