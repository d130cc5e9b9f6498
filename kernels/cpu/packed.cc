// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/packed.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/codec.h"

namespace nibble {
namespace {

// Below this many features a whole-row int32 sum of int8 products cannot overflow.
constexpr int64_t kMaxInt8Cols = int64_t{1} << 17;

constexpr size_t Align(size_t bytes) { return (bytes + 127) / 128 * 128; }

Packing PackingOf(const Scheme& scheme, DType input) {
  switch (scheme.code) {
    case DType::kF32:
      return Packing::kF32;
    case DType::kF16:
      return Packing::kF16;
    case DType::kBF16:
      return input == DType::kBF16 ? Packing::kBF16Pairs : Packing::kBF16;
    default:
      if (!HasIntegerPacking(scheme)) return Packing::kStored;
      return scheme.code == DType::kI4 ? Packing::kU4 : Packing::kU8;
  }
}

struct Layout {
  int64_t panels, groups;
  size_t panel_bytes, codes, scales, zeros, bias, outlier_weights, outlier_features;
  size_t total() const {
    return codes + scales + zeros + bias + outlier_weights + outlier_features;
  }
};

Layout LayoutOf(const WeightView& w, bool has_bias) {
  const Scheme& scheme = *w.scheme;
  Layout layout{};
  layout.panels = (w.rows + kPanelRows - 1) / kPanelRows;
  layout.groups = scheme.quantized() ? scheme.GroupsPerRow(w.cols) : 0;
  layout.bias = has_bias ? Align(static_cast<size_t>(w.rows) * sizeof(float)) : 0;
  if (scheme.quantized() && !HasIntegerPacking(scheme)) {
    layout.codes = StoredBytes(w);
    return layout;
  }
  const int64_t padded = (w.cols + kPanelStep - 1) / kPanelStep * kPanelStep;
  layout.panel_bytes = static_cast<size_t>(padded * kPanelRows * scheme.bits() / 8);
  const auto panels = static_cast<size_t>(layout.panels);
  const size_t entries = panels * static_cast<size_t>(layout.groups) * kPanelRows;
  layout.codes = Align(panels * layout.panel_bytes);
  layout.scales = Align(entries * sizeof(uint16_t));
  layout.zeros = scheme.symmetric() ? 0 : Align(entries);
  layout.outlier_weights =
      Align(panels * static_cast<size_t>(w.outliers) * kPanelRows * sizeof(uint16_t));
  layout.outlier_features = Align(static_cast<size_t>(w.outliers) * sizeof(int32_t));
  return layout;
}

// Four nibbles of the low 16 bits, one per byte.
uint32_t SpreadNibbles(uint32_t x) {
  x = (x | (x << 8)) & 0x00ff00ffu;
  return (x | (x << 4)) & 0x0f0f0f0fu;
}

template <typename T>
void PackPlainRow(const WeightView& w, int64_t row, int lane, uint8_t* panel) {
  const T* source = static_cast<const T*>(w.codes) + row * w.cols;
  T* out = reinterpret_cast<T*>(panel) + lane;
  for (int64_t k = 0; k < w.cols; ++k) out[k * kPanelRows] = source[k];
}

void PackPairRow(const WeightView& w, int64_t row, int lane, uint8_t* panel) {
  const auto* source = static_cast<const uint16_t*>(w.codes) + row * w.cols;
  auto* out = reinterpret_cast<uint16_t*>(panel) + 2 * lane;
  for (int64_t k = 0; k < w.cols; ++k) out[k / 2 * 2 * kPanelRows + k % 2] = source[k];
}

// Words of four unsigned bytes: the stored ones, or int8 codes with their sign bit flipped.
void PackByteRow(const WeightView& w, int64_t row, int lane, uint8_t* panel) {
  const bool biased = w.scheme->container == Container::kPacked;
  const auto* source =
      static_cast<const uint8_t*>(w.codes) + row * (biased ? PackedWords(w.cols, 8) * 4 : w.cols);
  const uint32_t flip = biased ? 0 : 0x80808080u;
  const auto pack = [&](int64_t k, size_t count) {
    uint32_t four = 0;
    std::memcpy(&four, source + k, count);
    four ^= flip & (count == 4 ? ~0u : (1u << (8 * count)) - 1u);
    std::memcpy(panel + (k / 4 * kPanelRows + lane) * 4, &four, 4);
  };
  const int64_t whole = w.cols / 4 * 4;
  for (int64_t k = 0; k < whole; k += 4) pack(k, 4);
  if (whole < w.cols) pack(whole, static_cast<size_t>(w.cols - whole));
}

void PackNibbleRow(const WeightView& w, int64_t row, int lane, uint8_t* panel) {
  const auto* source = static_cast<const uint32_t*>(w.codes) + row * PackedWords(w.cols, 4);
  for (int64_t k = 0; k < w.cols; k += 8) {
    uint32_t word = source[k / 8];
    if (w.cols - k < 8) word &= (1u << (4 * (w.cols - k))) - 1u;
    const uint32_t packed = SpreadNibbles(word & 0xffffu) | (SpreadNibbles(word >> 16) << 4);
    std::memcpy(panel + (k / 8 * kPanelRows + lane) * 4, &packed, 4);
  }
}

}  // namespace

absl::Status CheckPackable(const Scheme& scheme, int64_t cols) {
  const auto unimplemented = [&scheme](std::string_view why) {
    return absl::UnimplementedError(absl::StrCat("cpu: scheme '", std::string(scheme.name),
                                                 "' has no kernel: ", std::string(why)));
  };
  if (scheme.activation != Activation::kInt8PerToken) return absl::OkStatus();
  if (!HasIntegerPacking(scheme)) {
    return unimplemented("int8 activations need int4 or int8 codes with bf16 scales");
  }
  if (cols > kMaxInt8Cols) {
    return unimplemented(absl::StrCat("input features ", cols, " exceed ", kMaxInt8Cols));
  }
  return absl::OkStatus();
}

bool HasIntegerPacking(const Scheme& scheme) {
  return (scheme.code == DType::kI4 || scheme.code == DType::kI8) && scheme.scale == DType::kBF16 &&
         (scheme.group == kWholeRow || scheme.group % kPanelStep == 0);
}

size_t StoredBytes(const WeightView& w) {
  size_t bytes = 0;
  for (const StoredTensor& tensor : StoredTensors(w)) {
    if (tensor.part != Part::kShape) bytes += Align(static_cast<size_t>(tensor.bytes()));
  }
  return bytes;
}

WeightView CopyStored(const WeightView& w, uint8_t* memory) {
  WeightView copy = w;
  for (const StoredTensor& tensor : StoredTensors(w)) {
    const auto bytes = static_cast<size_t>(tensor.bytes());
    if (tensor.part == Part::kShape || bytes == 0) continue;
    std::memcpy(memory, w.Get(tensor.part), bytes);
    copy.Set(tensor.part, memory);
    memory += Align(bytes);
  }
  return copy;
}

size_t PackedBytes(const WeightView& w, bool has_bias) { return LayoutOf(w, has_bias).total(); }

PackedMatrix PackWeight(const WeightView& w, const float* bias, DType input, uint8_t* memory,
                        ThreadPool& pool) {
  const Layout layout = LayoutOf(w, bias != nullptr);
  uint8_t* codes = memory;
  auto* scales = reinterpret_cast<uint16_t*>(memory + layout.codes);
  uint8_t* zeros = memory + layout.codes + layout.scales;
  const Packing packing = PackingOf(*w.scheme, input);
  PackedMatrix packed;
  packed.packing = packing;
  packed.rows = w.rows;
  packed.cols = w.cols;
  packed.group = w.scheme->GroupWidth(w.cols);
  packed.groups = layout.groups;
  packed.panels = layout.panels;
  packed.panel_bytes = layout.panel_bytes;
  if (bias != nullptr) {
    auto* copy = reinterpret_cast<float*>(memory + layout.codes + layout.scales + layout.zeros);
    std::memcpy(copy, bias, static_cast<size_t>(w.rows) * sizeof(float));
    packed.bias = copy;
  }
  if (packing == Packing::kStored) {
    packed.stored = CopyStored(w, memory);
    return packed;
  }
  packed.codes = codes;
  packed.scales = scales;
  packed.zeros = w.scheme->symmetric() ? nullptr : zeros;
  uint8_t* outlier_weights = memory + layout.codes + layout.scales + layout.zeros + layout.bias;
  if (w.outliers > 0) {
    uint8_t* features = outlier_weights + layout.outlier_weights;
    std::memcpy(features, w.outlier_features, static_cast<size_t>(w.outliers) * sizeof(int32_t));
    packed.outliers = w.outliers;
    packed.outlier_features = reinterpret_cast<const int32_t*>(features);
    packed.outlier_weights = outlier_weights;
  }
  const int zero_bias = w.scheme->quantized() ? 1 << (w.scheme->bits() - 1) : 0;
  pool.Run(layout.panels, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; ++panel) {
      uint8_t* out = codes + static_cast<size_t>(panel) * layout.panel_bytes;
      const int64_t first = panel * kPanelRows;
      const int count = static_cast<int>(std::min<int64_t>(kPanelRows, w.rows - first));
      for (int lane = 0; lane < count; ++lane) {
        const int64_t row = first + lane;
        switch (packing) {
          case Packing::kF32:
            PackPlainRow<uint32_t>(w, row, lane, out);
            break;
          case Packing::kF16:
          case Packing::kBF16:
            PackPlainRow<uint16_t>(w, row, lane, out);
            break;
          case Packing::kBF16Pairs:
            PackPairRow(w, row, lane, out);
            break;
          case Packing::kU8:
            PackByteRow(w, row, lane, out);
            break;
          case Packing::kU4:
            PackNibbleRow(w, row, lane, out);
            break;
          case Packing::kStored:
            NIBBLE_CHECK(false);
        }
        auto* outliers = reinterpret_cast<uint16_t*>(outlier_weights) + lane;
        for (int64_t i = 0; i < w.outliers; ++i) {
          outliers[(panel * w.outliers + i) * kPanelRows] = w.outlier_weights[row * w.outliers + i];
        }
        for (int64_t g = 0; g < layout.groups; ++g) {
          const int64_t at = (panel * layout.groups + g) * kPanelRows + lane;
          scales[at] = static_cast<const uint16_t*>(w.scales)[row * layout.groups + g];
          if (!w.scheme->symmetric()) {
            zeros[at] = static_cast<uint8_t>(ReadZero(w, row, g) + zero_bias);
          }
        }
      }
    }
  });
  return packed;
}

float ReadPacked(const PackedMatrix& w, int64_t n, int64_t k) {
  const int64_t panel = n / kPanelRows;
  const int64_t lane = n % kPanelRows;
  if (const int64_t i = FindOutlier(w.outlier_features, w.outliers, k); i >= 0) {
    return LoadFloat(w.outlier_weights, DType::kBF16, (panel * w.outliers + i) * kPanelRows + lane);
  }
  const uint8_t* codes = w.codes + static_cast<size_t>(panel) * w.panel_bytes;
  int code = 0;
  int bias = 0;
  switch (w.packing) {
    case Packing::kStored:
      return ReadWeight(w.stored, n, k);
    case Packing::kF32:
      return LoadFloat(codes, DType::kF32, k * kPanelRows + lane);
    case Packing::kF16:
      return LoadFloat(codes, DType::kF16, k * kPanelRows + lane);
    case Packing::kBF16:
      return LoadFloat(codes, DType::kBF16, k * kPanelRows + lane);
    case Packing::kBF16Pairs:
      return LoadFloat(codes, DType::kBF16, (k / 2 * kPanelRows + lane) * 2 + k % 2);
    case Packing::kU8:
      code = codes[(k / 4 * kPanelRows + lane) * 4 + k % 4];
      bias = 128;
      break;
    case Packing::kU4:
      code = codes[(k / 8 * kPanelRows + lane) * 4 + k % 4] >> (k % 8 < 4 ? 0 : 4) & 15;
      bias = 8;
      break;
  }
  const int64_t at = (panel * w.groups + k / w.group) * kPanelRows + lane;
  return DecodeInt(code, BF16ToF32(w.scales[at]), w.zeros == nullptr ? bias : w.zeros[at]);
}

}  // namespace nibble
