// SPDX-License-Identifier: Apache-2.0
// Entries of the KV cache in the codes that have no vector form, as they lie in a block of the CPU.
#pragma once

#include <cstdint>

#include "kernels/kv_codec.h"

namespace nibble {

// One code a byte; returns the scale.
float EncodeFp8Entry(const float* x, int dim, uint8_t* codes);

// Packs `dim` codes of four bits into KvCodeBytes(KvCode::kInt4, dim) bytes: runs of 32 elements
// (the last may be shorter), the first half of a run, rounded up, in the low nibbles of its bytes,
// the second in the high ones. Writes the scales of the groups.
void EncodeInt4Entry(const float* x, int dim, uint8_t* packed, KvInt4Scale* groups);

}  // namespace nibble
