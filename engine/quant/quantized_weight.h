// SPDX-License-Identifier: Apache-2.0
// A weight in the layout of its scheme, owned; and the one place where codes are packed.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/quant/matrix.h"
#include "kernels/scheme.h"

namespace nibble {

// Scales and zero points of a weight (rows, cols): one per row and group of input features.
struct GroupScales {
  int64_t rows = 0;
  int64_t groups = 0;
  std::vector<float> scale;  // (rows, groups), rounded to the stored type unless that is nested
  std::vector<int8_t> zero;  // (rows, groups), zeros where the scheme is symmetric

  GroupScales(int64_t r, int64_t g)
      : rows(r), groups(g), scale(static_cast<size_t>(r * g)), zero(static_cast<size_t>(r * g)) {}
};

// Zero points of so many rows fill whole words, whatever their bits.
inline constexpr int64_t kRowsOfWord = 32;

// Owns the tensors that StoredTensors() lists. Moving keeps views valid.
class QuantizedWeight {
 public:
  // All codes are the packed form of 0 bits, all scales 0, no outliers; rows, cols >= 1.
  QuantizedWeight(const Scheme& scheme, int64_t rows, int64_t cols);
  // For unquantized schemes: the values rounded to the scheme's type.
  static QuantizedWeight FromFloat(const Scheme& scheme, const Matrix& weight);

  const Scheme& scheme() const { return *scheme_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  const StoredTensorList& tensors() const { return tensors_; }
  // The bytes of tensors().items[i].
  const std::vector<uint8_t>& bytes(int i) const { return bytes_[static_cast<size_t>(i)]; }
  WeightView view() const;

  // Stores scales and zero points; once, before any row. Nested scales become what was stored:
  // codes are chosen with those.
  void SetScales(GroupScales& scales);
  // Stores row n's codes (cols), in code_min()..code_max(); once per row. Different rows may be set
  // by different threads.
  void SetRow(int64_t n, const int8_t* codes);
  // In schemes with outliers: these features (ascending) are outliers, and their weights the
  // columns of `weight` in bf16. Their codes are 0.
  void SetOutliers(const std::vector<int32_t>& features, const Matrix& weight);
  // Rows [first, first + rows.rows()) become those of `rows`, of the same scheme and columns and
  // without outliers; `first` is a multiple of kRowsOfWord.
  void SetRows(int64_t first, const QuantizedWeight& rows);

 private:
  uint8_t* PartData(Part part);

  const Scheme* scheme_;
  int64_t rows_;
  int64_t cols_;
  int64_t outliers_ = 0;
  StoredTensorList tensors_;
  std::array<std::vector<uint8_t>, kMaxStoredTensors> bytes_;
};

// The float value of every weight of a view, as ReadWeight gives it; of `count` rows from `first`
// on.
Matrix Dequantize(const WeightView& view, int threads);
Matrix DequantizeRows(const WeightView& view, int64_t first, int64_t count, int threads);

// What `count` weights that share one scale become: out[i] = DecodeWeight(EncodeWeight(w[i])), and
// the codes themselves where `codes` is not null. The same bits as kernels/codec.h, for spans.
void QuantizeSpan(const float* w, int64_t count, float scale, int zero, const Scheme& scheme,
                  float* out, int8_t* codes);

}  // namespace nibble
