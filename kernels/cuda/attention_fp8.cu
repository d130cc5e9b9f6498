// SPDX-License-Identifier: Apache-2.0
// Attention over pages of fp8; tiling and limit are in attention_decode.h and attention_prefill.h.
#include "kernels/cuda/attention_table.h"

namespace nibble {

constinit const AttentionFormat kAttentionFp8 = AttentionFormatOf<KvCode::kFp8, KvCode::kFp8>();

}  // namespace nibble
