// SPDX-License-Identifier: Apache-2.0
// Codes that no tier has vector instructions for, decoded and encoded one by one. Compiled once for
// every CPU, so that all tiers have the same bits.
#pragma once

#include <cstdint>

#include "kernels/cpu/tier.h"

namespace nibble {

// Features [k, k + count) of a panel of a matrix packed as kStored: out is [count][kPanelRows],
// rows beyond the matrix are 0.
void ExpandStored(const PackedMatrix& w, int64_t panel, int64_t k, int64_t count, float* out);

// E4M3InverseScale and F32ToE4M3 of `count` values whose largest magnitude is `absmax`.
void EncodeE4M3(const float* x, int64_t count, float absmax, uint8_t* out);
// Their values under the scale.
void DecodeE4M3(const uint8_t* codes, int64_t count, float scale, float* out);

}  // namespace nibble
