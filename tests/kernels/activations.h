// SPDX-License-Identifier: Apache-2.0
// Activations in the formats of a PreparedLinear, in memory of a backend.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/codec.h"

namespace nibble::testing {

// Fails the process when there is no memory: tests allocate kilobytes.
inline std::unique_ptr<Buffer> Take(Backend& backend, size_t bytes) {
  return backend.Allocate(bytes).value();
}

inline std::unique_ptr<Buffer> TakeFloats(Backend& backend, const std::vector<float>& values) {
  auto buffer = Take(backend, values.size() * sizeof(float));
  backend.Upload(buffer->data(), values.data(), values.size() * sizeof(float));
  return buffer;
}

inline std::vector<float> Floats32(const Buffer& buffer, int64_t count) {
  const auto* data = buffer.as<float>();
  return {data, data + count};
}

inline std::vector<float> RandomFloats(int64_t count, uint32_t seed, float deviation = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

// Owns the memory of an ActSet.
class Activations {
 public:
  Activations(Backend& backend, std::span<const ActFormat> formats, int64_t rows, int64_t cols) {
    for (const ActFormat& format : formats) {
      ActView view;
      view.format = format;
      view.cols = cols;
      const auto groups = static_cast<size_t>(rows * format.GroupsPerRow(cols));
      buffers_.push_back(Take(backend, static_cast<size_t>(rows * cols) * BytesOf(format.dtype)));
      view.data = buffers_.back()->data();
      if (groups > 0) {
        buffers_.push_back(Take(backend, groups * sizeof(float)));
        view.scales = buffers_.back()->as<float>();
        buffers_.push_back(Take(backend, groups * sizeof(int32_t)));
        view.sums = buffers_.back()->as<int32_t>();
      }
      if (format.outliers.count > 0) {
        const auto stride = static_cast<size_t>(OutlierStride(format.outliers.count));
        buffers_.push_back(Take(backend, static_cast<size_t>(rows) * stride * sizeof(float)));
        view.outliers = buffers_.back()->data();
      }
      set_.views[static_cast<size_t>(set_.count++)] = view;
    }
  }
  const ActSet& set() const { return set_; }

 private:
  ActSet set_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

// What element (row, col) of an activation stands for.
inline double ActivationValue(const ActView& view, int64_t row, int64_t col) {
  const int64_t at = row * view.cols + col;
  if (view.format.dtype == DType::kF32) return static_cast<const float*>(view.data)[at];
  if (view.format.dtype == DType::kBF16) {
    return BF16ToF32(static_cast<const uint16_t*>(view.data)[at]);
  }
  const OutlierFeatures& split = view.format.outliers;
  if (const int64_t i = FindOutlier(split.features, split.count, col); i >= 0) {
    return static_cast<const float*>(view.outliers)[row * OutlierStride(split.count) + i];
  }
  const int64_t groups = view.format.GroupsPerRow(view.cols);
  const int64_t group = view.format.group < 0 ? 0 : col / view.format.group;
  const double code = view.format.dtype == DType::kF8E4M3
                          ? E4M3ToF32(static_cast<const uint8_t*>(view.data)[at])
                          : static_cast<const int8_t*>(view.data)[at];
  return code * view.scales[row * groups + group];
}

// Every tier that this machine has; "scalar" first.
inline std::vector<std::string> Tiers() {
  std::vector<std::string> tiers;
  for (const char* tier : {"scalar", "avx2", "avx512", "avx512-bf16"}) {
    if (MakeCpuBackend({.threads = 1, .tier = tier}).ok()) tiers.emplace_back(tier);
  }
  return tiers;
}

}  // namespace nibble::testing
