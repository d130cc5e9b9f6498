// SPDX-License-Identifier: Apache-2.0
// Where the KV cache lies in device memory.
//
//   pool     [block][layer][kv head] of a head's part
//   part     codes of K [token][head_dim], codes of V [token][head_dim], scales of K, scales of V
//   codes    as the format stores them; of int4, element d is nibble d % 2 of byte d / 2
//   scales   int8 and fp8: [token] f32
//            int4: [group of 64 elements][scale, low][token] bf16
//
// What attention reads of a head is one contiguous run of a block. Every array begins at a multiple
// of 16 bytes if head_dim is a multiple of 8, which the kernels require.
#pragma once

#include <cstdint>

#include "kernels/ops.h"

namespace nibble {

inline constexpr int32_t kCudaHeadDimMultiple = 8;
inline constexpr int32_t kCudaMaxHeadDim = 256;

// One layer of a pool. Plain data: it goes to kernels by value.
struct KvLayout {
  uint8_t* base = nullptr;  // of the layer in block 0
  int64_t block_bytes = 0;
  int64_t head_bytes = 0;
  int64_t value_codes = 0, key_scales = 0, value_scales = 0;  // from the start of a head's part

  NIBBLE_HD uint8_t* Head(int32_t block, int32_t kv_head) const {
    return base + block * block_bytes + kv_head * head_bytes;
  }
};

inline KvLayout KvLayoutOf(const KvPool& pool, int32_t layer) {
  const KvSpec& spec = pool.spec;
  constexpr int64_t kTokens = kKvBlockTokens;
  KvLayout layout;
  layout.value_codes = kTokens * KvCodeBytes(spec.format->k, spec.head_dim);
  layout.key_scales = layout.value_codes + kTokens * KvCodeBytes(spec.format->v, spec.head_dim);
  layout.value_scales = layout.key_scales + kTokens * KvScaleBytes(spec.format->k, spec.head_dim);
  layout.head_bytes = layout.value_scales + kTokens * KvScaleBytes(spec.format->v, spec.head_dim);
  layout.block_bytes = layout.head_bytes * spec.kv_heads * spec.layers;
  layout.base = static_cast<uint8_t*>(pool.data) + layout.head_bytes * spec.kv_heads * layer;
  return layout;
}

// The bf16 scale of a token in the scales of int4; its low is kKvBlockTokens further.
NIBBLE_HD inline int64_t KvInt4ScaleIndex(int64_t group, int64_t token) {
  return 2 * group * kKvBlockTokens + token;
}

}  // namespace nibble
