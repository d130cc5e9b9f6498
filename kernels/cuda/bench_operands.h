// SPDX-License-Identifier: Apache-2.0
// Weights and activations for timing products, and which rows of the results are checked.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/codec.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/scheme.h"

namespace nibble {

// Rows of a product that are checked: spread over all of them, the first and the last too.
inline constexpr int64_t kCheckedRows = 8;
inline int64_t CheckedRow(int64_t i, int64_t rows) {
  return rows <= kCheckedRows ? i : i * (rows - 1) / (kCheckedRows - 1);
}

// A stored weight of random codes in host memory.
struct HostWeight {
  WeightView view;
  std::vector<uint32_t> parts[3];
};
inline HostWeight RandomWeight(const Scheme& scheme, int64_t rows, int64_t cols) {
  HostWeight weight;
  std::mt19937 random(1);
  for (const StoredTensor& tensor : StoredTensors(scheme, rows, cols, 0)) {
    if (tensor.part == Part::kShape) continue;
    auto& words = weight.parts[static_cast<size_t>(tensor.part)];
    words.resize(static_cast<size_t>(tensor.bytes() + 3) / 4);
    if (tensor.part == Part::kScales) {
      const uint32_t scale = F32ToBF16(0.01f);
      std::fill(words.begin(), words.end(), scale | scale << 16);
    } else if (!scheme.quantized()) {
      for (uint32_t& word : words) {
        const auto uniform = [&random] { return static_cast<float>(random()) * 0x1p-32f - 0.5f; };
        word = F32ToBF16(0.1f * uniform()) | static_cast<uint32_t>(F32ToBF16(0.1f * uniform()))
                                                 << 16;
      }
    } else {
      for (uint32_t& word : words) word = static_cast<uint32_t>(random());
      if (scheme.code == DType::kF8E4M3) {  // no NaN
        for (uint32_t& word : words) word &= 0xf7f7f7f7u;
      }
    }
  }
  weight.view = {
      &scheme, rows, cols, weight.parts[0].data(), weight.parts[1].data(), weight.parts[2].data()};
  return weight;
}

// Activations and room for outputs of the largest case, in every format.
struct Operands {
  std::vector<DeviceMemory> memory;
  ActView bf16_view, int8_view, e4m3_view;
  float* decoded = nullptr;  // (kCheckedRows, in) of the format that is checked
  void* out = nullptr;
  float* exact = nullptr;

  const ActView& view(DType type) const {
    return type == DType::kI8 ? int8_view : type == DType::kF8E4M3 ? e4m3_view : bf16_view;
  }
};
inline absl::StatusOr<Operands> MakeOperands(Device& device, int64_t rows, int64_t out,
                                             int64_t in) {
  Operands operands;
  absl::Status failed;
  const auto take = [&](int64_t bytes) -> void* {
    auto memory = DeviceMemory::Allocate(device, static_cast<size_t>(bytes));
    if (!memory.ok()) {
      failed = memory.status();
      return nullptr;
    }
    operands.memory.push_back(*std::move(memory));
    return operands.memory.back().data();
  };
  const int64_t elements = rows * in;
  operands.bf16_view = {{DType::kBF16, 0}, in, take(2 * elements), nullptr, nullptr};
  operands.int8_view = {{DType::kI8, kWholeRow},
                        in,
                        take(elements),
                        static_cast<float*>(take(4 * rows)),
                        static_cast<int32_t*>(take(4 * rows))};
  operands.e4m3_view = {{DType::kF8E4M3, kWholeRow},
                        in,
                        take(elements),
                        static_cast<float*>(take(4 * rows)),
                        nullptr};
  operands.decoded = static_cast<float*>(take(4 * kCheckedRows * in));
  operands.out = take(2 * rows * out);
  operands.exact = static_cast<float*>(take(4 * kCheckedRows * out));
  auto* ones = static_cast<float*>(take(4 * in));
  auto* x = static_cast<float*>(take(4 * elements));
  if (!failed.ok()) return failed;
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(elements));
  for (float& value : values) value = normal(random);
  device.CopyIn(x, values.data(), values.size() * sizeof(float));
  const std::vector<float> one(static_cast<size_t>(in), 1.0f);
  device.CopyIn(ones, one.data(), one.size() * sizeof(float));
  RmsNormArgs norm{};
  norm.x = x;
  norm.weight = ones;
  norm.eps = 1e-6f;
  norm.dim = in;
  norm.num_rows = rows;
  norm.out.count = 3;
  norm.out.views = {operands.bf16_view, operands.int8_view, operands.e4m3_view};
  LaunchRmsNorm(device, norm);
  return operands;
}

// What the checked rows of `rows` of activations stand for, in `decoded`.
inline absl::Status Decode(Device& device, const ActView& view, int64_t rows, float* decoded) {
  const int64_t checked = std::min(rows, kCheckedRows);
  const size_t row_bytes = static_cast<size_t>(view.cols) * BytesOf(view.format.dtype);
  std::vector<uint8_t> data(static_cast<size_t>(checked) * row_bytes);
  std::vector<float> scales(static_cast<size_t>(checked), 1.0f);
  std::vector<float> values(static_cast<size_t>(checked * view.cols));
  for (int64_t i = 0; i < checked; ++i) {
    const int64_t row = CheckedRow(i, rows);
    device.CopyOut(data.data() + static_cast<size_t>(i) * row_bytes,
                   static_cast<const uint8_t*>(view.data) + static_cast<size_t>(row) * row_bytes,
                   row_bytes);
    if (view.scales != nullptr) {
      device.CopyOut(&scales[static_cast<size_t>(i)], view.scales + row, sizeof(float));
    }
  }
  if (absl::Status status = device.Sync(); !status.ok()) return status;
  for (size_t i = 0; i < values.size(); ++i) {
    const float scale = scales[i / static_cast<size_t>(view.cols)];
    switch (view.format.dtype) {
      case DType::kI8:
        values[i] = scale * static_cast<float>(static_cast<int8_t>(data[i]));
        break;
      case DType::kF8E4M3:
        values[i] = scale * E4M3ToF32(data[i]);
        break;
      default:
        values[i] = BF16ToF32(static_cast<uint16_t>(data[2 * i] | data[2 * i + 1] << 8));
    }
  }
  device.CopyIn(decoded, values.data(), values.size() * sizeof(float));
  return absl::OkStatus();
}

}  // namespace nibble
