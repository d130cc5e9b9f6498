// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/quantized_weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/check.h"
#include "kernels/codec.h"

namespace nibble {
namespace {

void StoreFloat(void* to, DType type, int64_t i, float value) {
  switch (type) {
    case DType::kF16:
      static_cast<uint16_t*>(to)[i] = F32ToF16(value);
      return;
    case DType::kBF16:
      static_cast<uint16_t*>(to)[i] = F32ToBF16(value);
      return;
    default:
      static_cast<float*>(to)[i] = value;
  }
}

// Double quantization (QLoRA, section 3, as bitsandbytes stores it): the offset is the mean m of
// all scales, the scale of a group of 256 is a = max|s - m|, a code is the dynamic8 nearest to (s -
// m) / a. Replaces the scales by what was stored.
void StoreNested(std::vector<float>& scales, uint8_t* codes, float* nested) {
  double sum = 0;
  for (const float scale : scales) sum += static_cast<double>(scale);
  const auto mean = static_cast<float>(sum / static_cast<double>(scales.size()));
  nested[0] = mean;
  for (size_t first = 0; first < scales.size(); first += kNestedGroup) {
    const size_t end = std::min(first + kNestedGroup, scales.size());
    float absmax = 0;
    for (size_t i = first; i < end; ++i) absmax = std::max(absmax, std::fabs(scales[i] - mean));
    nested[1 + first / kNestedGroup] = absmax;
    for (size_t i = first; i < end; ++i) {
      codes[i] = F32ToDynamic8(absmax > 0 ? (scales[i] - mean) / absmax : 0.0f);
    }
  }
}

}  // namespace

QuantizedWeight::QuantizedWeight(const Scheme& scheme, int64_t rows, int64_t cols)
    : scheme_(&scheme), rows_(rows), cols_(cols), tensors_(StoredTensors(scheme, rows, cols, 0)) {
  for (int i = 0; i < tensors_.count; ++i) {
    const StoredTensor& tensor = tensors_.items[static_cast<size_t>(i)];
    std::vector<uint8_t>& bytes = bytes_[static_cast<size_t>(i)];
    bytes.resize(static_cast<size_t>(tensor.bytes()));
    if (tensor.part == Part::kShape) {
      const int64_t shape[2] = {rows, cols};
      std::memcpy(bytes.data(), shape, sizeof(shape));
    }
  }
}

uint8_t* QuantizedWeight::PartData(Part part) {
  for (int i = 0; i < tensors_.count; ++i) {
    if (tensors_.items[static_cast<size_t>(i)].part == part) {
      return bytes_[static_cast<size_t>(i)].data();
    }
  }
  return nullptr;
}

WeightView QuantizedWeight::view() const {
  WeightView view;
  view.scheme = scheme_;
  view.rows = rows_;
  view.cols = cols_;
  view.outliers = outliers_;
  for (int i = 0; i < tensors_.count; ++i) {
    view.Set(tensors_.items[static_cast<size_t>(i)].part, bytes_[static_cast<size_t>(i)].data());
  }
  return view;
}

QuantizedWeight QuantizedWeight::FromFloat(const Scheme& scheme, const Matrix& weight) {
  NIBBLE_CHECK(!scheme.quantized());
  QuantizedWeight result(scheme, weight.rows, weight.cols);
  void* to = result.PartData(Part::kCodes);
  const int64_t count = weight.rows * weight.cols;
  for (int64_t i = 0; i < count; ++i) {
    StoreFloat(to, scheme.code, i, weight.values[static_cast<size_t>(i)]);
  }
  return result;
}

void QuantizedWeight::SetScales(GroupScales& scales) {
  NIBBLE_CHECK(scales.rows == rows_ && scales.groups == scheme_->GroupsPerRow(cols_));
  uint8_t* to = PartData(Part::kScales);
  if (scheme_->nested()) {
    StoreNested(scales.scale, to, reinterpret_cast<float*>(PartData(Part::kNested)));
    const WeightView stored = view();
    for (int64_t n = 0; n < rows_; ++n) {
      for (int64_t g = 0; g < scales.groups; ++g) {
        scales.scale[static_cast<size_t>(n * scales.groups + g)] = ReadScale(stored, n, g);
      }
    }
    return;
  }
  for (size_t i = 0; i < scales.scale.size(); ++i) {
    StoreFloat(to, scheme_->scale, static_cast<int64_t>(i), scales.scale[i]);
  }
  if (scheme_->symmetric()) return;
  auto* words = reinterpret_cast<uint32_t*>(PartData(Part::kZeros));
  const int bits = BitsOf(scheme_->zero);
  for (int64_t n = 0; n < rows_; ++n) {
    for (int64_t g = 0; g < scales.groups; ++g) {
      const int zero = scales.zero[static_cast<size_t>(n * scales.groups + g)];
      const auto biased = static_cast<uint32_t>(zero + (1 << (bits - 1)));
      uint32_t* word = words + (n * bits / 32) * scales.groups + g;
      const auto shift = static_cast<int>(n * bits % 32);
      word[0] |= biased << shift;
      if (shift + bits > 32) word[scales.groups] |= biased >> (32 - shift);
    }
  }
}

void QuantizedWeight::SetRow(int64_t n, const int8_t* codes) {
  uint8_t* data = PartData(Part::kCodes);
  if (scheme_->container == Container::kBytes) {
    std::memcpy(data + n * cols_, codes, static_cast<size_t>(cols_));
    return;
  }
  const int bits = scheme_->bits();
  auto* row = reinterpret_cast<uint32_t*>(data) + n * PackedWords(cols_, bits);
  for (int64_t k = 0; k < cols_; ++k) {
    WriteBits(row, k, bits, static_cast<uint32_t>(codes[k] - scheme_->code_min()));
  }
}

void QuantizedWeight::SetOutliers(const std::vector<int32_t>& features, const Matrix& weight) {
  NIBBLE_CHECK(scheme_->outliers && outliers_ == 0 && weight.rows == rows_ &&
               weight.cols == cols_ && features.size() <= kMaxOutlierFeatures);
  outliers_ = static_cast<int64_t>(features.size());
  tensors_ = StoredTensors(*scheme_, rows_, cols_, outliers_);
  for (int i = 0; i < tensors_.count; ++i) {
    const auto part = static_cast<size_t>(i);
    bytes_[part].resize(static_cast<size_t>(tensors_.items[part].bytes()));
  }
  std::copy(features.begin(), features.end(),
            reinterpret_cast<int32_t*>(PartData(Part::kOutlierFeatures)));
  auto* columns = reinterpret_cast<uint16_t*>(PartData(Part::kOutlierWeights));
  for (int64_t n = 0; n < rows_; ++n) {
    for (const int32_t k : features) *columns++ = F32ToBF16(weight.at(n, k));
  }
}

void QuantizedWeight::SetRows(int64_t first, const QuantizedWeight& rows) {
  NIBBLE_CHECK(rows.scheme_ == scheme_ && rows.cols_ == cols_ && first % kRowsOfWord == 0 &&
               first >= 0 && rows.rows_ <= rows_ - first && outliers_ + rows.outliers_ == 0);
  const StoredTensorList before = StoredTensors(*scheme_, first, cols_, 0);
  for (int i = 0; i < tensors_.count; ++i) {
    const auto part = static_cast<size_t>(i);
    if (tensors_.items[part].part == Part::kShape) continue;
    const std::vector<uint8_t>& bytes = rows.bytes_[part];
    // No rows still have the offset of nested scales.
    const int64_t offset = first == 0 ? 0 : before.items[part].bytes();
    std::copy(bytes.begin(), bytes.end(), bytes_[part].begin() + offset);
  }
}

Matrix Dequantize(const WeightView& view, int threads) {
  return DequantizeRows(view, 0, view.rows, threads);
}

Matrix DequantizeRows(const WeightView& view, int64_t first, int64_t count, int threads) {
  Matrix result(count, view.cols);
  ParallelFor(threads, count, [&](int64_t n) {
    float* row = result.row(n);
    for (int64_t k = 0; k < view.cols; ++k) row[k] = ReadWeight(view, first + n, k);
  });
  return result;
}

void QuantizeSpan(const float* w, int64_t count, float scale, int zero, const Scheme& scheme,
                  float* out, int8_t* codes) {
  if (scheme.code == DType::kNF4 || scheme.code == DType::kF8E4M3) {
    for (int64_t i = 0; i < count; ++i) {
      const int code = EncodeWeight(scheme, w[i], scale, zero);
      out[i] = DecodeWeight(scheme, code, scale, zero);
      if (codes != nullptr) codes[i] = static_cast<int8_t>(code);
    }
    return;
  }
  if (scale == 0.0f) {
    std::fill(out, out + count, 0.0f);
    if (codes != nullptr) std::fill(codes, codes + count, static_cast<int8_t>(zero));
    return;
  }
  // Clamping before rounding gives the same code, since the bounds are integers; adding and taking
  // away 1.5 * 2^23 rounds half to even.
  constexpr float kRound = 12582912.0f;
  const auto low = static_cast<float>(scheme.code_min() - zero);
  const auto high = static_cast<float>(scheme.code_max() - zero);
  for (int64_t i = 0; i < count; ++i) {
    float q = w[i] / scale;
    q = q < low ? low : q;
    q = q > high ? high : q;
    q = (q + kRound) - kRound;
    out[i] = q * scale;
    if (codes != nullptr) codes[i] = static_cast<int8_t>(static_cast<int>(q) + zero);
  }
}

}  // namespace nibble
