// SPDX-License-Identifier: Apache-2.0
// The weight formats, and every fact that follows from them.
//
// A Scheme says what is *stored* for one linear layer and what its matrix product *consumes*.
// Nothing else in the project decides the name, type or shape of a stored tensor: the quantizer
// allocates from StoredTensors(), the writer loops over it, the reader checks against it, and the
// backend receives exactly those views. To add a format, add a row.
//
// A weight W has shape [rows = output features, cols = input features], row-major.
// Integer formats: W[n][k] ~= (q[n][k] - z[n][k / group]) * s[n][k / group], with q and z signed,
// -2^(b-1) <= q, z <= 2^(b-1) - 1. E4M3 and NF4: W[n][k] ~= value(q[n][k]) * s[n][k / group], with
// the values of dtype.h and codec.h. The last group of a row may be short.
// The stored layout is that of compressed-tensors (docs/artifact.md): codes biased to unsigned and
// packed LSB-first into int32 words along the input axis, zero points packed along the output axis.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "kernels/dtype.h"

namespace nibble {

inline constexpr int64_t kWholeRow = -1;

// How codes lie on disk and in the views that a backend receives.
enum class Container : uint8_t {
  kPlain,   // "weight", in the code type itself (f32, f16, bf16)
  kPacked,  // "weight_packed": code - code_min() as an LSB-first bit stream of int32 words, per row
  kBytes,   // "weight": one byte per code, in the code type itself (int8, e4m3)
};

// What the matrix product consumes.
enum class Activation : uint8_t {
  kFloat,         // the activation as it is (weight-only schemes)
  kInt8PerToken,  // int8, symmetric, one dynamic scale per token
  kE4M3PerToken,  // e4m3, one dynamic scale per token
};

struct Scheme {
  std::string_view name;  // Public and stored in artifacts: never rename.
  DType code;             // Type of one stored weight.
  Container container;
  int64_t group;  // Input features that share one scale: kWholeRow or a count.
  DType scale;    // Type of one scale; kNone = not quantized, kU8 = quantized itself (nested).
  DType zero;     // Type of one zero point; kNone = symmetric (zero point 0).
  Activation activation;
  // Some input features, the outliers, are not rounded: their weights are bf16, their activations
  // as they are (LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339). Which they are is stored;
  // their codes are 0.
  bool outliers = false;

  constexpr bool quantized() const { return scale != DType::kNone; }
  constexpr bool symmetric() const { return zero == DType::kNone; }
  // Double quantization: scales are codes under f32 scales of their own, see Part::kNested.
  constexpr bool nested() const { return scale == DType::kU8; }
  constexpr int bits() const { return BitsOf(code); }
  // Range of a code: of the signed integer, of the index into the NF4 table, of the byte of e4m3
  // taken as int8.
  constexpr int code_min() const { return code == DType::kNF4 ? 0 : -(1 << (bits() - 1)); }
  constexpr int code_max() const { return code_min() + (1 << bits()) - 1; }
  // A symmetric scale is the largest magnitude of its group divided by this: the largest value of
  // e4m3 and of NF4, and half of the steps of an integer grid, which puts the ends half a step
  // beyond the largest code and half a step within the smallest.
  constexpr double span() const {
    return code == DType::kF8E4M3 ? double{kMaxE4M3}
           : code == DType::kNF4  ? 1.0
                                  : (code_max() - code_min()) / 2.0;
  }
  // Number of scales in one row of `cols` input features.
  constexpr int64_t GroupsPerRow(int64_t cols) const {
    return group == kWholeRow ? 1 : (cols + group - 1) / group;
  }
  // Width of a full group in a row of `cols` input features.
  constexpr int64_t GroupWidth(int64_t cols) const { return group == kWholeRow ? cols : group; }
};

// clang-format off
inline constexpr Scheme kSchemes[] = {
    // name             code          container            group      scale         zero          activation                 outliers
    {"f32",            DType::kF32,  Container::kPlain,  kWholeRow, DType::kNone, DType::kNone, Activation::kFloat},
    {"f16",            DType::kF16,  Container::kPlain,  kWholeRow, DType::kNone, DType::kNone, Activation::kFloat},
    {"bf16",           DType::kBF16, Container::kPlain,  kWholeRow, DType::kNone, DType::kNone, Activation::kFloat},
    {"int8",           DType::kI8,   Container::kPacked, kWholeRow, DType::kBF16, DType::kNone, Activation::kFloat},
    {"int8-g128",      DType::kI8,   Container::kPacked, 128,       DType::kBF16, DType::kNone, Activation::kFloat},
    {"int8-g64",       DType::kI8,   Container::kPacked, 64,        DType::kBF16, DType::kNone, Activation::kFloat},
    {"int8-g32",       DType::kI8,   Container::kPacked, 32,        DType::kBF16, DType::kNone, Activation::kFloat},
    {"int4-g128",      DType::kI4,   Container::kPacked, 128,       DType::kBF16, DType::kNone, Activation::kFloat},
    {"int4-g64",       DType::kI4,   Container::kPacked, 64,        DType::kBF16, DType::kNone, Activation::kFloat},
    {"int4-g32",       DType::kI4,   Container::kPacked, 32,        DType::kBF16, DType::kNone, Activation::kFloat},
    {"int4-g128-asym", DType::kI4,   Container::kPacked, 128,       DType::kBF16, DType::kI4,   Activation::kFloat},
    {"int4-g64-asym",  DType::kI4,   Container::kPacked, 64,        DType::kBF16, DType::kI4,   Activation::kFloat},
    {"int4-g32-asym",  DType::kI4,   Container::kPacked, 32,        DType::kBF16, DType::kI4,   Activation::kFloat},
    {"int3-g128",      DType::kI3,   Container::kPacked, 128,       DType::kBF16, DType::kNone, Activation::kFloat},
    {"int3-g64",       DType::kI3,   Container::kPacked, 64,        DType::kBF16, DType::kNone, Activation::kFloat},
    {"int3-g128-asym", DType::kI3,   Container::kPacked, 128,       DType::kBF16, DType::kI3,   Activation::kFloat},
    {"int3-g64-asym",  DType::kI3,   Container::kPacked, 64,        DType::kBF16, DType::kI3,   Activation::kFloat},
    {"int2-g64",       DType::kI2,   Container::kPacked, 64,        DType::kBF16, DType::kNone, Activation::kFloat},
    {"int2-g32",       DType::kI2,   Container::kPacked, 32,        DType::kBF16, DType::kNone, Activation::kFloat},
    {"int2-g64-asym",  DType::kI2,   Container::kPacked, 64,        DType::kBF16, DType::kI2,   Activation::kFloat},
    {"int2-g32-asym",  DType::kI2,   Container::kPacked, 32,        DType::kBF16, DType::kI2,   Activation::kFloat},
    {"nf4",            DType::kNF4,  Container::kPacked, 64,        DType::kBF16, DType::kNone, Activation::kFloat},
    {"nf4-dq",         DType::kNF4,  Container::kPacked, 64,        DType::kU8,   DType::kNone, Activation::kFloat},
    {"w8a8",           DType::kI8,   Container::kBytes,  kWholeRow, DType::kBF16, DType::kNone, Activation::kInt8PerToken},
    {"llm-int8",       DType::kI8,   Container::kBytes,  kWholeRow, DType::kBF16, DType::kNone, Activation::kInt8PerToken, true},
    {"fp8",            DType::kF8E4M3, Container::kBytes, kWholeRow, DType::kBF16, DType::kNone, Activation::kE4M3PerToken},
    {"fp8-w8a16",      DType::kF8E4M3, Container::kBytes, kWholeRow, DType::kBF16, DType::kNone, Activation::kFloat},
};
// clang-format on

// The scheme of that name, or nullptr. The pointer is valid for the life of the program and
// identifies the scheme: rows may be compared by address.
constexpr const Scheme* FindScheme(std::string_view name) {
  for (const Scheme& scheme : kSchemes) {
    if (scheme.name == name) return &scheme;
  }
  return nullptr;
}

// The unquantized scheme that stores `type`, or nullptr.
constexpr const Scheme* PlainScheme(DType type) {
  for (const Scheme& scheme : kSchemes) {
    if (!scheme.quantized() && scheme.code == type) return &scheme;
  }
  return nullptr;
}

// What a stored tensor holds.
enum class Part : uint8_t {
  kCodes,
  kScales,
  kZeros,
  kShape,   // rows and cols
  kNested,  // Of nested scales, numbered row by row: the offset of all, then a scale for each
            // kNestedGroup of them (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, section 3).
  kOutlierFeatures,  // which features are outliers, ascending
  kOutlierWeights,   // and their columns of the weight
};
inline constexpr int kMaxStoredTensors = 5;
inline constexpr int64_t kNestedGroup = 256;
// Outlier features of one weight; never more than it has features.
inline constexpr int64_t kMaxOutlierFeatures = 256;

struct StoredTensor {
  Part part;
  std::string_view
      suffix;  // Appended to the module name: "model.layers.0.mlp.up_proj" + ".weight_scale".
  DType dtype;
  int rank;                      // 1 or 2
  std::array<int64_t, 2> shape;  // shape[1] is 1 where rank is 1

  constexpr int64_t elements() const { return shape[0] * shape[1]; }
  constexpr int64_t bytes() const { return elements() * static_cast<int64_t>(BytesOf(dtype)); }
};

struct StoredTensorList {
  int count = 0;
  std::array<StoredTensor, kMaxStoredTensors> items{};

  constexpr const StoredTensor* begin() const { return items.data(); }
  constexpr const StoredTensor* end() const { return items.data() + count; }
  constexpr int64_t bytes() const {
    int64_t sum = 0;
    for (const StoredTensor& tensor : *this) sum += tensor.bytes();
    return sum;
  }
};

// The tensors that hold a [rows, cols] weight in `scheme`. rows, cols >= 1 and rows * cols < 2^62;
// `outliers`, 0 where the scheme has none, in 0..min(cols, kMaxOutlierFeatures).
constexpr StoredTensorList StoredTensors(const Scheme& scheme, int64_t rows, int64_t cols,
                                         int64_t outliers) {
  StoredTensorList list;
  auto add = [&list](Part part, std::string_view suffix, DType dtype, int rank, int64_t n,
                     int64_t k) {
    list.items[static_cast<size_t>(list.count++)] = StoredTensor{part, suffix, dtype, rank, {n, k}};
  };
  const int64_t bits = scheme.bits();
  switch (scheme.container) {
    case Container::kPlain:
      add(Part::kCodes, ".weight", scheme.code, 2, rows, cols);
      break;
    case Container::kBytes:
      add(Part::kCodes, ".weight", scheme.code, 2, rows, cols);
      break;
    case Container::kPacked:
      add(Part::kCodes, ".weight_packed", DType::kI32, 2, rows, (cols * bits + 31) / 32);
      break;
  }
  if (scheme.quantized()) {
    add(Part::kScales, ".weight_scale", scheme.scale, 2, rows, scheme.GroupsPerRow(cols));
  }
  if (!scheme.symmetric()) {
    add(Part::kZeros, ".weight_zero_point", DType::kI32, 2, (rows * BitsOf(scheme.zero) + 31) / 32,
        scheme.GroupsPerRow(cols));
  }
  if (scheme.container == Container::kPacked) {
    add(Part::kShape, ".weight_shape", DType::kI64, 1, 2, 1);
  }
  if (scheme.nested()) {
    const int64_t scales = rows * scheme.GroupsPerRow(cols);
    add(Part::kNested, ".weight_scale_nested", DType::kF32, 1,
        1 + (scales + kNestedGroup - 1) / kNestedGroup, 1);
  }
  if (scheme.outliers) {
    add(Part::kOutlierFeatures, ".outlier_features", DType::kI32, 1, outliers, 1);
    add(Part::kOutlierWeights, ".weight_outliers", DType::kBF16, 2, rows, outliers);
  }
  return list;
}

// One weight as a backend, an algorithm or the writer sees it: pointers to the stored tensors, in
// the layout that StoredTensors() declares. Does not own; the pointers must outlive the use
// (Backend::Prepare copies).
struct WeightView {
  const Scheme* scheme = nullptr;
  int64_t rows = 0;                           // output features
  int64_t cols = 0;                           // input features
  const void* codes = nullptr;                // Part::kCodes
  const void* scales = nullptr;               // Part::kScales, nullptr if not quantized
  const void* zeros = nullptr;                // Part::kZeros, nullptr if symmetric
  const float* nested = nullptr;              // Part::kNested, nullptr unless scales are nested
  int64_t outliers = 0;                       // outlier features, 0 in schemes without
  const uint16_t* outlier_weights = nullptr;  // Part::kOutlierWeights
  const int32_t* outlier_features = nullptr;  // Part::kOutlierFeatures

  // The member of `part`, by name; Part::kShape has none.
  const void* Get(Part part) const {
    switch (part) {
      case Part::kCodes:
        return codes;
      case Part::kScales:
        return scales;
      case Part::kZeros:
        return zeros;
      case Part::kNested:
        return nested;
      case Part::kOutlierWeights:
        return outlier_weights;
      case Part::kOutlierFeatures:
        return outlier_features;
      case Part::kShape:
        break;
    }
    return nullptr;
  }
  void Set(Part part, const void* data) {
    switch (part) {
      case Part::kCodes:
        codes = data;
        return;
      case Part::kScales:
        scales = data;
        return;
      case Part::kZeros:
        zeros = data;
        return;
      case Part::kNested:
        nested = static_cast<const float*>(data);
        return;
      case Part::kOutlierWeights:
        outlier_weights = static_cast<const uint16_t*>(data);
        return;
      case Part::kOutlierFeatures:
        outlier_features = static_cast<const int32_t*>(data);
        return;
      case Part::kShape:
        return;
    }
  }
};

constexpr StoredTensorList StoredTensors(const WeightView& view) {
  return StoredTensors(*view.scheme, view.rows, view.cols, view.outliers);
}

namespace scheme_internal {
constexpr bool NamesAreUnique() {
  for (const Scheme& a : kSchemes) {
    for (const Scheme& b : kSchemes) {
      if (&a != &b && a.name == b.name) return false;
    }
  }
  return true;
}
}  // namespace scheme_internal
static_assert(scheme_internal::NamesAreUnique());
static_assert(StoredTensors(*FindScheme("int4-g128"), 4096, 4096, 0).items[0].shape[1] == 512);
static_assert(StoredTensors(*FindScheme("int4-g128"), 4096, 4096, 0).items[1].shape[1] == 32);
static_assert(StoredTensors(*FindScheme("int4-g32-asym"), 20, 64, 0).items[2].shape[0] == 3);
static_assert(StoredTensors(*FindScheme("int3-g64-asym"), 21, 65, 0).items[0].shape[1] == 7);
static_assert(StoredTensors(*FindScheme("int3-g64-asym"), 21, 65, 0).items[2].shape[0] == 2);
static_assert(StoredTensors(*FindScheme("nf4-dq"), 257, 65, 0).items[3].elements() == 1 + 3);
static_assert(StoredTensors(*FindScheme("bf16"), 3, 5, 0).bytes() == 30);
static_assert(StoredTensors(*FindScheme("llm-int8"), 3, 5, 2).bytes() == 15 + 6 + 12 + 8);

}  // namespace nibble
