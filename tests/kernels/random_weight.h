// SPDX-License-Identifier: Apache-2.0
// A random weight in any scheme, in its stored form.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "kernels/codec.h"
#include "kernels/scheme.h"

namespace nibble::testing {

class RandomWeight {
 public:
  RandomWeight(RandomWeight&&) = default;  // Views stay valid.
  RandomWeight(const RandomWeight&) = delete;
  // In schemes with outliers every fifth feature is one.
  RandomWeight(const Scheme& scheme, int64_t rows, int64_t cols, uint32_t seed)
      : RandomWeight(scheme, rows, cols, seed, EveryFifth(scheme, cols)) {}
  RandomWeight(const Scheme& scheme, int64_t rows, int64_t cols, uint32_t seed,
               const std::vector<int32_t>& outliers) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    view_.scheme = &scheme;
    view_.rows = rows;
    view_.cols = cols;
    view_.outliers = static_cast<int64_t>(outliers.size());
    const auto list = StoredTensors(view_);
    for (const StoredTensor& tensor : list) {
      if (tensor.part == Part::kShape) continue;
      parts_[tensor.part].assign(static_cast<size_t>(tensor.bytes() + 3) / 4 + 1, 0);
    }
    for (const StoredTensor& tensor : list) view_.Set(tensor.part, Data(tensor.part));
    uint32_t* codes = Data(Part::kCodes);
    if (!scheme.quantized()) {
      for (int64_t i = 0; i < rows * cols; ++i) {
        const float w = 0.1f * normal(random);
        if (scheme.code == DType::kF32) {
          reinterpret_cast<float*>(codes)[i] = w;
        } else {
          reinterpret_cast<uint16_t*>(codes)[i] =
              scheme.code == DType::kF16 ? F32ToF16(w) : F32ToBF16(w);
        }
      }
      return;
    }
    if (scheme.nested()) {
      auto* nested = reinterpret_cast<float*>(Data(Part::kNested));
      nested[0] = 0.015f;
      for (int64_t i = 0; i * kNestedGroup < rows * scheme.GroupsPerRow(cols); ++i) {
        nested[1 + i] = 0.01f * std::abs(normal(random));
      }
    }
    std::uniform_int_distribution<int> code(scheme.code_min(), scheme.code_max());
    const int bits = scheme.bits();
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t k = 0; k < cols; ++k) {
        int q = code(random);
        if (scheme.code == DType::kF8E4M3 && (q & 0x7f) == 0x7f) q = 0;  // no NaN
        if (scheme.container == Container::kBytes) {
          reinterpret_cast<int8_t*>(codes)[n * cols + k] = static_cast<int8_t>(q);
        } else {
          WriteBits(codes + n * PackedWords(cols, bits), k, bits,
                    static_cast<uint32_t>(q - scheme.code_min()));
        }
      }
      for (int64_t g = 0; g < scheme.GroupsPerRow(cols); ++g) {
        const int64_t groups = scheme.GroupsPerRow(cols);
        if (scheme.nested()) {
          reinterpret_cast<uint8_t*>(Data(Part::kScales))[n * groups + g] =
              static_cast<uint8_t>(random());
        } else {
          reinterpret_cast<uint16_t*>(Data(Part::kScales))[n * groups + g] =
              F32ToBF16(0.01f * (0.5f + std::abs(normal(random))));
        }
        if (scheme.symmetric()) continue;
        const int zero_bits = BitsOf(scheme.zero);
        for (int64_t bit = n * zero_bits; bit < (n + 1) * zero_bits; ++bit) {
          Data(Part::kZeros)[bit / 32 * groups + g] |= (random() & 1u) << (bit % 32);
        }
      }
    }
    for (size_t i = 0; i < outliers.size(); ++i) {
      reinterpret_cast<int32_t*>(Data(Part::kOutlierFeatures))[i] = outliers[i];
      for (int64_t n = 0; n < rows; ++n) {
        reinterpret_cast<int8_t*>(codes)[n * cols + outliers[i]] = 0;
        reinterpret_cast<uint16_t*>(
            Data(Part::kOutlierWeights))[n * view_.outliers + static_cast<int64_t>(i)] =
            F32ToBF16(0.5f * normal(random));
      }
    }
  }

  const WeightView& view() const { return view_; }

 private:
  static std::vector<int32_t> EveryFifth(const Scheme& scheme, int64_t cols) {
    std::vector<int32_t> features;
    for (int32_t k = 1; scheme.outliers && k < cols && k < 5 * kMaxOutlierFeatures; k += 5) {
      features.push_back(k);
    }
    return features;
  }
  uint32_t* Data(Part part) { return parts_[part].data(); }

  WeightView view_;
  std::map<Part, std::vector<uint32_t>> parts_;
};

}  // namespace nibble::testing
