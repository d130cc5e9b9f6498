// SPDX-License-Identifier: Apache-2.0
// Parameters of sampling as one array (sample.h).
#include <cstring>

#include "kernels/cuda/sample.h"

namespace nibble {
namespace {

bool Penalizes(const SamplingRow& row) {
  return row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
         row.frequency_penalty != 0.0f;
}

}  // namespace

size_t PackedSamplingBytes(std::span<const SamplingRow> rows) {
  size_t words = 0;
  for (const SamplingRow& row : rows) {
    words += 2 * static_cast<size_t>(row.num_bias) + static_cast<size_t>(row.num_banned);
    if (Penalizes(row)) words += 2 * static_cast<size_t>(row.num_seen);
  }
  return rows.size() * sizeof(PackedSamplingRow) + words * sizeof(int32_t);
}

void PackSampling(std::span<const SamplingRow> rows, void* to) {
  auto* packed = static_cast<PackedSamplingRow*>(to);
  auto* const words = reinterpret_cast<int32_t*>(packed + rows.size());
  int64_t used = 0;
  const auto append = [&](const void* list, int32_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(int32_t);
    if (list != nullptr) {
      std::memcpy(words + used, list, bytes);
    } else {
      std::memset(words + used, 0, bytes);
    }
    used += count;
  };
  for (const SamplingRow& row : rows) {
    PackedSamplingRow& out = *packed++;
    out.row = row;
    out.row.num_seen = Penalizes(row) ? row.num_seen : 0;
    out.row.unlisted = Penalizes(row) ? row.unlisted : -1;
    out.lists = used;
    append(row.bias_ids, row.num_bias);
    append(row.bias, row.num_bias);
    append(row.banned_ids, row.num_banned);
    append(row.seen_ids, out.row.num_seen);
    append(row.output_counts, out.row.num_seen);
    out.row.bias_ids = out.row.banned_ids = out.row.seen_ids = out.row.output_counts = nullptr;
    out.row.bias = nullptr;
  }
}

}  // namespace nibble
