// SPDX-License-Identifier: Apache-2.0
// Reads and writes rows of activations in the formats that a linear wants; the ends of every kernel
// that produces activations.
#pragma once

#include <cmath>

#include "kernels/codec.h"
#include "kernels/cuda/simt.h"
#include "kernels/ops.h"

namespace nibble {

NIBBLE_DEVICE void StoreFloat(const Floats& out, int64_t at, float value) {
  if (out.dtype == DType::kBF16) {
    static_cast<uint16_t*>(out.data)[at] = F32ToBF16(value);
  } else {
    static_cast<float*>(out.data)[at] = value;
  }
}

// ---- Four neighbours of a row at a time
// kVectors: at once, from memory that FourAtOnce has looked at. Otherwise one by one, those beyond
// the row's `dim` columns not at all.

struct Four {
  float value[4] = {};
};

// Whether every row of `dim` columns begins where four can be read or written at once.
inline bool FourAtOnce(const void* rows, DType type, int64_t dim) {
  return dim % 4 == 0 && reinterpret_cast<uintptr_t>(rows) % (4 * BytesOf(type)) == 0;
}
inline bool FourAtOnce(const ActSet& out) {
  for (int f = 0; f < out.count; ++f) {
    const ActView& view = out.views[static_cast<size_t>(f)];
    if (!FourAtOnce(view.data, view.format.dtype, view.cols)) return false;
  }
  return true;
}

template <bool kVectors>
NIBBLE_DEVICE Four LoadFour(const void* data, DType type, int64_t row, int64_t dim,
                            int64_t column) {
  Four four;
  const int64_t at = row * dim + column;
  if constexpr (!kVectors) {
    for (int e = 0; e < 4 && column + e < dim; ++e) four.value[e] = LoadFloat(data, type, at + e);
  } else if (type == DType::kBF16) {
    const auto halves =
        *reinterpret_cast<const simt::Vec8*>(static_cast<const uint16_t*>(data) + at);
    NIBBLE_UNROLL
    for (int e = 0; e < 4; ++e) {
      four.value[e] = BF16ToF32(static_cast<uint16_t>(halves.word[e / 2] >> (16 * (e % 2))));
    }
  } else {
    const auto words = *reinterpret_cast<const simt::Vec16*>(static_cast<const float*>(data) + at);
    NIBBLE_UNROLL
    for (int e = 0; e < 4; ++e) four.value[e] = std::bit_cast<float>(words.word[e]);
  }
  return four;
}

template <bool kVectors>
NIBBLE_DEVICE void StoreFour(const Floats& out, int64_t row, int64_t dim, int64_t column,
                             const Four& four) {
  const int64_t at = row * dim + column;
  if constexpr (!kVectors) {
    for (int e = 0; e < 4 && column + e < dim; ++e) StoreFloat(out, at + e, four.value[e]);
  } else if (out.dtype == DType::kBF16) {
    *reinterpret_cast<simt::Vec8*>(static_cast<uint16_t*>(out.data) +
                                   at) = {{simt::PackBF16x2(four.value[0], four.value[1]),
                                           simt::PackBF16x2(four.value[2], four.value[3])}};
  } else {
    *reinterpret_cast<simt::Vec16*>(static_cast<float*>(out.data) + at) = {
        {std::bit_cast<uint32_t>(four.value[0]), std::bit_cast<uint32_t>(four.value[1]),
         std::bit_cast<uint32_t>(four.value[2]), std::bit_cast<uint32_t>(four.value[3])}};
  }
}

// By formats without scales; the others are left to WriteRowCodes.
template <bool kVectors>
NIBBLE_DEVICE void WriteRowFour(const ActSet& out, int64_t row, int64_t column, const Four& four) {
  for (int f = 0; f < kMaxActFormats; ++f) {
    if (f >= out.count) break;
    const ActView& view = out.views[static_cast<size_t>(f)];
    if (view.format.dtype == DType::kF32 || view.format.dtype == DType::kBF16) {
      StoreFour<kVectors>({view.data, view.format.dtype}, row, view.cols, column, four);
    }
  }
}

// One value of a row, likewise.
NIBBLE_DEVICE void WriteRowFloat(const ActSet& out, int64_t row, int64_t column, float value) {
  for (int f = 0; f < kMaxActFormats; ++f) {
    if (f >= out.count) break;
    const ActView& view = out.views[static_cast<size_t>(f)];
    if (view.format.dtype == DType::kF32 || view.format.dtype == DType::kBF16) {
      StoreFloat({view.data, view.format.dtype}, row * view.cols + column, value);
    }
  }
}

// ---- Codes

// A row in shared memory, (dim) f32 from its beginning, and behind it what warps exchange.
struct RowScratch {
  float absmax[simt::kWarp], poison[simt::kWarp];  // of each warp of the block
  int32_t sums[simt::kWarp];
};
NIBBLE_HD inline int64_t RowFloats(int64_t dim) { return (dim + 3) / 4 * 4; }
inline size_t RowSharedBytes(int64_t dim) {
  return static_cast<size_t>(RowFloats(dim)) * sizeof(float) + sizeof(RowScratch);
}

// What is known of a span of values before its codes are.
struct SpanSize {
  float absmax = 0.0f;
  // A value that is not finite must reach the logits: through the scale.
  float poison = 0.0f;

  NIBBLE_DEVICE void Add(float value) {
    const float size = std::fabs(value);
    absmax = size > absmax ? size : absmax;
    poison = std::fma(value, 0.0f, poison);
  }
  NIBBLE_DEVICE void AddWarp() {
    absmax = simt::WarpMax(absmax);
    poison = simt::WarpSum(poison);
  }
};

// Codes of one format by the functions of codec.h.
class RowEncoder {
 public:
  NIBBLE_DEVICE RowEncoder(const ActView& view, const SpanSize& size)
      : e4m3_(view.format.dtype == DType::kF8E4M3),
        inverse_(e4m3_ ? E4M3InverseScale(size.absmax) : Int8InverseScale(size.absmax)),
        scale_((e4m3_ ? E4M3Scale(size.absmax) : Int8Scale(size.absmax)) + size.poison) {}

  NIBBLE_DEVICE uint8_t operator()(float value) {
    if (e4m3_) return F32ToE4M3(value * inverse_);
    const int8_t code = EncodeInt8(value, inverse_);
    sum_ += code;
    return static_cast<uint8_t>(code);
  }
  NIBBLE_DEVICE bool sums() const { return !e4m3_; }
  NIBBLE_DEVICE int32_t sum() const { return sum_; }
  NIBBLE_DEVICE float scale() const { return scale_; }

 private:
  bool e4m3_;
  float inverse_, scale_;
  int32_t sum_ = 0;
};

// The size of a whole row, by the block.
NIBBLE_DEVICE SpanSize SizeOfRow(const float* values, int64_t cols, RowScratch& scratch) {
  SpanSize size;
  const int64_t fours = cols / 4;
  for (int64_t v = simt::Thread(); v < fours; v += simt::Threads()) {
    const auto four = reinterpret_cast<const simt::Vec16*>(values)[v];
    NIBBLE_UNROLL
    for (int e = 0; e < 4; ++e) size.Add(std::bit_cast<float>(four.word[e]));
  }
  for (int64_t i = 4 * fours + simt::Thread(); i < cols; i += simt::Threads()) size.Add(values[i]);
  size.AddWarp();
  if (simt::Lane() == 0) {
    scratch.absmax[simt::WarpIndex()] = size.absmax;
    scratch.poison[simt::WarpIndex()] = size.poison;
  }
  simt::SyncThreads();
  const int warps = simt::Threads() / simt::kWarp;
  size = {};
  if (simt::Lane() < warps) {
    size = {scratch.absmax[simt::Lane()], scratch.poison[simt::Lane()]};
  }
  size.AddWarp();
  return size;
}

// Codes, scale and sum of a whole row, by the block; between two in int8, whose sums meet in
// `scratch`, there is a barrier.
NIBBLE_DEVICE void WriteWholeRow(const ActView& view, int64_t row, const float* values,
                                 const SpanSize& size, RowScratch& scratch) {
  RowEncoder encode(view, size);
  auto* codes = static_cast<uint8_t*>(view.data) + row * view.cols;
  const int64_t fours = reinterpret_cast<uintptr_t>(codes) % 4 == 0 ? view.cols / 4 : 0;
  for (int64_t v = simt::Thread(); v < fours; v += simt::Threads()) {
    const auto four = reinterpret_cast<const simt::Vec16*>(values)[v];
    uint32_t word = 0;
    NIBBLE_UNROLL
    for (int e = 0; e < 4; ++e) {
      word |= static_cast<uint32_t>(encode(std::bit_cast<float>(four.word[e]))) << (8 * e);
    }
    reinterpret_cast<uint32_t*>(codes)[v] = word;
  }
  for (int64_t i = 4 * fours + simt::Thread(); i < view.cols; i += simt::Threads()) {
    codes[i] = encode(values[i]);
  }
  if (simt::Thread() == 0) view.scales[row] = encode.scale();
  if (!encode.sums()) return;
  const int32_t sum = simt::WarpSum(encode.sum());
  if (simt::Lane() == 0) scratch.sums[simt::WarpIndex()] = sum;
  simt::SyncThreads();
  if (simt::Thread() == 0) {
    int32_t total = 0;
    for (int w = 0; w < simt::Threads() / simt::kWarp; ++w) total += scratch.sums[w];
    view.sums[row] = total;
  }
}

// Codes, scales and sums of a row in groups: a warp takes a group.
NIBBLE_DEVICE void WriteGroups(const ActView& view, int64_t row, const float* values) {
  const int64_t groups = view.format.GroupsPerRow(view.cols);
  auto* codes = static_cast<uint8_t*>(view.data) + row * view.cols;
  for (int64_t g = simt::WarpIndex(); g < groups; g += simt::Threads() / simt::kWarp) {
    const int64_t begin = g * view.format.group;
    const int64_t end =
        begin + view.format.group < view.cols ? begin + view.format.group : view.cols;
    SpanSize size;
    for (int64_t i = begin + simt::Lane(); i < end; i += simt::kWarp) size.Add(values[i]);
    size.AddWarp();
    RowEncoder encode(view, size);
    for (int64_t i = begin + simt::Lane(); i < end; i += simt::kWarp) codes[i] = encode(values[i]);
    const int32_t sum = simt::WarpSum(encode.sum());
    if (simt::Lane() == 0) {
      view.scales[row * groups + g] = encode.scale();
      if (encode.sums()) view.sums[row * groups + g] = sum;
    }
  }
}

// ---- Outliers: handed over in bf16, and zeros in the row while the rest is encoded

// Of each thread of a block.
inline constexpr int kTakenOutliers = static_cast<int>(kMaxOutlierFeatures) / simt::kWarp;

NIBBLE_DEVICE void TakeOutliers(const ActView& view, int64_t row, float* values,
                                float (&taken)[kTakenOutliers]) {
  const OutlierFeatures& split = view.format.outliers;
  const int32_t stride = OutlierStride(split.count);
  NIBBLE_UNROLL
  for (int i = 0; i < kTakenOutliers; ++i) {
    const int j = simt::Thread() + i * simt::Threads();
    taken[i] = 0.0f;
    if (j < split.count) {
      taken[i] = values[split.features[j]];
      values[split.features[j]] = 0.0f;
    }
    if (j < stride) static_cast<uint16_t*>(view.outliers)[row * stride + j] = F32ToBF16(taken[i]);
  }
  simt::SyncThreads();
}
NIBBLE_DEVICE void ReturnOutliers(const ActView& view, float* values,
                                  const float (&taken)[kTakenOutliers]) {
  const OutlierFeatures& split = view.format.outliers;
  simt::SyncThreads();
  NIBBLE_UNROLL
  for (int i = 0; i < kTakenOutliers; ++i) {
    const int j = simt::Thread() + i * simt::Threads();
    if (j < split.count) values[split.features[j]] = taken[i];
  }
  simt::SyncThreads();
}

// Row `row` in every format of `out` that has scales, from its values in shared memory of
// RowSharedBytes; the whole block calls it after a barrier.
NIBBLE_DEVICE void WriteRowCodes(const ActSet& out, int64_t row, float* values) {
  SpanSize size;
  bool sized = false;
  for (int f = 0; f < kMaxActFormats; ++f) {
    if (f >= out.count) break;
    const ActView& view = out.views[static_cast<size_t>(f)];
    if (view.format.GroupsPerRow(view.cols) == 0) continue;
    if (view.format.group > 0) {
      WriteGroups(view, row, values);
      continue;
    }
    auto& scratch = *reinterpret_cast<RowScratch*>(values + RowFloats(view.cols));
    const bool split = view.format.outliers.count > 0;
    float taken[kTakenOutliers];
    if (split) TakeOutliers(view, row, values, taken);
    const SpanSize own = split || !sized ? SizeOfRow(values, view.cols, scratch) : size;
    WriteWholeRow(view, row, values, own, scratch);
    if (split) {
      ReturnOutliers(view, values, taken);
    } else {
      size = own;
      sized = true;
    }
  }
}

// Whether a row must also lie in shared memory for WriteRowCodes.
NIBBLE_HD inline bool WantsCodes(const ActSet& out) {
  for (int f = 0; f < kMaxActFormats; ++f) {
    if (f >= out.count) break;
    const ActView& view = out.views[static_cast<size_t>(f)];
    if (view.format.GroupsPerRow(view.cols) > 0) return true;
  }
  return false;
}

}  // namespace nibble
