// SPDX-License-Identifier: Apache-2.0
// Weights as the CPU backend keeps them: linears in packed panels, tables as they are stored.
#pragma once

#include <array>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/codec.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/packed.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/tiers.h"

namespace nibble {

class CpuLinear : public PreparedLinear {
 public:
  std::span<const ActFormat> input_formats() const override {
    return {formats.data(), static_cast<size_t>(num_formats)};
  }
  size_t resident_bytes() const override { return bytes; }

  std::array<ActFormat, kMaxActFormats> formats{};
  int num_formats = 0;
  int num_weights = 0;
  std::array<PackedMatrix, kMaxGroupWeights> weights;
  std::array<int, kMaxGroupWeights> format_of{};  // index in formats
  int64_t panels = 0;                             // of all weights
  size_t bytes = 0;
  std::shared_ptr<uint8_t> memory;
};

class CpuEmbedding : public PreparedEmbedding {
 public:
  size_t resident_bytes() const override { return bytes; }
  float Read(int64_t row, int64_t k) const {
    return packed != nullptr ? ReadPacked(*packed, row, k) : ReadWeight(table, row, k);
  }
  int64_t cols() const { return packed != nullptr ? packed->cols : table.cols; }

  const PackedMatrix* packed = nullptr;  // of a tied head; `table` is unused then
  WeightView table;
  size_t bytes = 0;
  std::shared_ptr<uint8_t> memory;
};

// Backend::Prepare and Backend::PrepareEmbedding.
absl::StatusOr<std::unique_ptr<PreparedLinear>> PrepareCpuLinear(const LinearGroup& group,
                                                                 Mode mode, const CpuTier& tier,
                                                                 WeightArena& arena,
                                                                 ThreadPool& pool);
absl::StatusOr<std::unique_ptr<PreparedEmbedding>> PrepareCpuEmbedding(const WeightView& table,
                                                                       WeightArena& arena);

}  // namespace nibble
