// SPDX-License-Identifier: Apache-2.0
// Attention over pages of f32; tiling and limit are in attention_decode.h and attention_prefill.h.
#include "kernels/cuda/attention_table.h"

namespace nibble {

constinit const AttentionFormat kAttentionF32 = AttentionFormatOf<KvCode::kF32, KvCode::kF32>();

}  // namespace nibble
