// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/prepared.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/packed.h"

namespace nibble {
namespace {

// The format in which a weight wants its input; outliers still those of the view.
ActFormat InputFormat(const WeightView& w, Mode mode, const CpuTier& tier) {
  const Scheme& scheme = *w.scheme;
  if (w.outliers > 0) {
    return {DType::kI8, kWholeRow, {static_cast<int32_t>(w.outliers), w.outlier_features}};
  }
  if (scheme.activation == Activation::kInt8PerToken) return {DType::kI8, kWholeRow};
  if (scheme.activation == Activation::kE4M3PerToken) return {DType::kF8E4M3, kWholeRow};
  if (mode == Mode::kExact) return {DType::kF32, 0};
  if (HasIntegerPacking(scheme))
    return {DType::kI8, scheme.group == kWholeRow ? 128 : scheme.group};
  if (scheme.code == DType::kBF16 && tier.bf16 != nullptr) return {DType::kBF16, 0};
  return {DType::kF32, 0};
}

}  // namespace

absl::StatusOr<std::unique_ptr<PreparedLinear>> PrepareCpuLinear(const LinearGroup& group,
                                                                 Mode mode, const CpuTier& tier,
                                                                 WeightArena& arena,
                                                                 ThreadPool& pool) {
  NIBBLE_CHECK(!group.weights.empty() && group.weights.size() <= kMaxGroupWeights);
  NIBBLE_CHECK(group.biases.empty() || group.biases.size() == group.weights.size());
  auto linear = std::make_unique<CpuLinear>();
  const auto bias_of = [&group](size_t i) {
    return group.biases.empty() ? nullptr : group.biases[i];
  };
  for (size_t i = 0; i < group.weights.size(); ++i) {
    const WeightView& w = group.weights[i];
    NIBBLE_CHECK(w.cols == group.weights[0].cols);
    if (absl::Status status = CheckPackable(*w.scheme, w.cols); !status.ok()) return status;
    linear->bytes += PackedBytes(w, bias_of(i) != nullptr);
    const ActFormat format = InputFormat(w, mode, tier);
    auto* const end = linear->formats.begin() + linear->num_formats;
    auto* const found = std::find_if(linear->formats.begin(), end, [&format](const ActFormat& f) {
      return SameInput(f, format);
    });
    linear->format_of[i] = static_cast<int>(found - linear->formats.begin());
    if (found == end) linear->formats[static_cast<size_t>(linear->num_formats++)] = format;
  }
  auto memory = arena.Take(linear->bytes);
  if (!memory.ok()) return memory.status();
  linear->memory = *std::move(memory);
  uint8_t* next = linear->memory.get();
  for (size_t i = 0; i < group.weights.size(); ++i) {
    ActFormat& input = linear->formats[static_cast<size_t>(linear->format_of[i])];
    linear->weights[i] = PackWeight(group.weights[i], bias_of(i), input.dtype, next, pool);
    if (input.outliers.count > 0) input.outliers.features = linear->weights[i].outlier_features;
    linear->panels += linear->weights[i].panels;
    next += PackedBytes(group.weights[i], bias_of(i) != nullptr);
  }
  linear->num_weights = static_cast<int>(group.weights.size());
  return linear;
}

absl::StatusOr<std::unique_ptr<PreparedEmbedding>> PrepareCpuEmbedding(const WeightView& table,
                                                                       WeightArena& arena) {
  if (absl::Status status = CheckPackable(*table.scheme, 1); !status.ok()) return status;
  auto embedding = std::make_unique<CpuEmbedding>();
  embedding->bytes = StoredBytes(table);
  auto memory = arena.Take(embedding->bytes);
  if (!memory.ok()) return memory.status();
  embedding->memory = *std::move(memory);
  embedding->table = CopyStored(table, embedding->memory.get());
  return embedding;
}

}  // namespace nibble
