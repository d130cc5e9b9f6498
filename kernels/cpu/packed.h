// SPDX-License-Identifier: Apache-2.0
// Repacking of stored weights into panels.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/tier.h"

namespace nibble {

// OK if there is a product for the scheme's activations; Unimplemented naming the scheme otherwise.
absl::Status CheckPackable(const Scheme& scheme, int64_t cols);

// Whether products multiply the integer codes of the scheme; weights in all others are expanded to
// floats while they are multiplied, from the stored tensors where they are quantized.
bool HasIntegerPacking(const Scheme& scheme);

// Bytes of a copy of the stored tensors of a weight.
size_t StoredBytes(const WeightView& w);
// The copy, in `memory` (StoredBytes, 128-byte aligned).
WeightView CopyStored(const WeightView& w, uint8_t* memory);

// Bytes of the packed form: codes, scales, zero points and bias.
size_t PackedBytes(const WeightView& w, bool has_bias);

// Packs for inputs of type `input` into `memory` (PackedBytes, zeroed, 128-byte aligned), which the
// result points into.
PackedMatrix PackWeight(const WeightView& w, const float* bias, DType input, uint8_t* memory,
                        ThreadPool& pool);

// Element k of row n: the bits of ReadWeight for the weight that was packed.
float ReadPacked(const PackedMatrix& w, int64_t n, int64_t k);

}  // namespace nibble
