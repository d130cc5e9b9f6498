// SPDX-License-Identifier: Apache-2.0
// The KV cache and attention on the device; the arguments are those of kernels/ops.h, the layout of
// the cache is in kv_layout.h. head_dim is a multiple of 8 up to 256, the rows of a sequence are
// the last tokens of its context. Nothing here allocates, reads back or waits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace nibble {

void LaunchRopeAppend(Device& device, const RopeAppendArgs& args);

// Memory that attention needs besides its arguments.
struct AttentionScratch {
  float* partials = nullptr;  // AttentionPartialBytes
  float* rows = nullptr;      // (rows, heads * head_dim) if an output format has scales
};

// Enough for every batch of at most this many sequences and blocks per sequence: per query head,
// about a byte (at head_dim 128) for every token of context of all sequences together, up to two
// million of them. Sequences that find no room are not split.
size_t AttentionPartialBytes(int64_t sequences, int64_t max_blocks, int32_t heads,
                             int32_t head_dim);

// How the work is cut, for benchmarks and tests; 0: as suits the device and the batch. No result
// depends on it. What does not fit the device is made smaller.
struct AttentionTuning {
  int part_tiles = 0;     // of a decoded sequence, for a block: 1 or 8
  int decode_warps = 0;   // of a block that decodes 8 tiles: 2 or 4
  int prefill_warps = 0;  // of a block: 2, 4 or 8
  int max_parts = 0;      // that decoded sequences may leave in `partials`
};

// Unimplemented, naming format, head_dim and device, where LaunchAttention has no kernel.
absl::Status CheckAttention(const DeviceInfo& device, const KvSpec& spec);

// A row's output depends on its position, its query and the keys and values before it: to the bit
// neither on the other rows and sequences nor on how the prompt was cut into chunks. The exception
// are values that are not finite: they may also reach rows of the same sequence that do not see
// them. Keys and values of the f32 format are rounded to bf16 when they are read.
void LaunchAttention(Device& device, const AttentionArgs& args, const AttentionScratch& scratch,
                     const AttentionTuning& tuning = {});

}  // namespace nibble
