// SPDX-License-Identifier: Apache-2.0
// How the linears of the CUDA backend are kept (linear.h).
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_e4m3.h"
#include "kernels/cuda/linear_rows.h"
#include "kernels/cuda/linear_wgmma.h"
#include "kernels/cuda/pack_weight.h"

namespace nibble {
namespace {

// Outliers are still those of the view.
ActFormat InputFormat(const WeightView& view, Mode mode) {
  const Scheme& scheme = *view.scheme;
  if (view.outliers > 0) {
    return {DType::kI8, kWholeRow, {static_cast<int32_t>(view.outliers), view.outlier_features}};
  }
  if (scheme.activation == Activation::kInt8PerToken) return {DType::kI8, kWholeRow};
  if (scheme.activation == Activation::kE4M3PerToken) return {DType::kF8E4M3, kWholeRow};
  return {mode == Mode::kExact ? DType::kF32 : DType::kBF16, 0};
}

bool IsPacked(LinearKind kind) {
  return kind == LinearKind::kPacked4 || kind == LinearKind::kPacked8;
}
// Products of dequantized weights.
bool WantsSlices(LinearKind kind) {
  return kind == LinearKind::kStored || kind == LinearKind::kE4M3 || IsPacked(kind);
}

// Whether neighbours are multiplied in one launch.
bool SharesPart(const WeightView& a, const WeightView& b, Mode mode) {
  const LinearKind kind = LinearKindOf(*a.scheme, mode);
  if (kind != LinearKindOf(*b.scheme, mode)) return false;
  if (kind == LinearKind::kInt8Outliers) {
    return SameInput(InputFormat(a, mode), InputFormat(b, mode));
  }
  return kind == LinearKind::kInt8 || kind == LinearKind::kE4M3 ||
         (IsPacked(kind) && PackedFormatOf(*a.scheme) == PackedFormatOf(*b.scheme));
}

// The stored form is on the device only while it is repacked.
template <typename Pack>
absl::StatusOr<DeviceWeight> Repack(Device& device, const WeightView& view, Pack&& pack) {
  std::vector<DeviceMemory> stored;
  absl::StatusOr<DeviceWeight> weight = UploadWeight(device, view, &stored);
  if (!weight.ok()) return weight.status();
  pack(*weight);
  if (absl::Status status = device.Sync(); !status.ok()) return status;
  weight->codes = weight->scales = weight->zeros = weight->nested = nullptr;
  return weight;
}

absl::Status PackPart(Device& device, std::span<const WeightView> views, LinearPart* part) {
  PackedLayout layout;
  layout.format = PackedFormatOf(*views[0].scheme);
  layout.k_tiles = PackedTiles(views[0].cols);
  for (const WeightView& view : views) layout.n_tiles += PackedTiles(view.rows);
  absl::StatusOr<DeviceMemory> packed =
      DeviceMemory::Allocate(device, static_cast<size_t>(layout.Bytes()));
  if (!packed.ok()) return packed.status();
  part->packed = PackedWeight{layout, packed->as<uint8_t>()};
  int tile = 0;
  for (size_t i = 0; i < views.size(); ++i) {
    absl::StatusOr<DeviceWeight> weight = Repack(device, views[i], [&](const DeviceWeight& stored) {
      LaunchPackWeight(device, stored, part->packed, tile);
    });
    if (!weight.ok()) return weight.status();
    part->weights[i] = *weight;
    tile += PackedTiles(views[i].rows);
  }
  part->memory.push_back(*std::move(packed));
  return absl::OkStatus();
}

absl::Status UploadPart(Device& device, std::span<const WeightView> views, LinearPart* part) {
  for (size_t i = 0; i < views.size(); ++i) {
    absl::StatusOr<DeviceWeight> weight = UploadWeight(device, views[i], &part->memory);
    if (!weight.ok()) return weight.status();
    part->weights[i] = *weight;
  }
  return absl::OkStatus();
}

// As stored, and the scales.
absl::Status KeepRowsPart(Device& device, std::span<const WeightView> views, LinearPart* part) {
  if (absl::Status status = UploadPart(device, views, part); !status.ok()) return status;
  for (size_t i = 0; i < views.size(); ++i) {
    const auto rows = static_cast<size_t>(views[i].rows);
    absl::StatusOr<DeviceMemory> scales = DeviceMemory::Allocate(device, rows * sizeof(float));
    if (!scales.ok()) return scales.status();
    LaunchRowScales(device, part->weights[i], scales->as<float>());
    part->scales[i] = scales->as<float>();
    part->memory.push_back(*std::move(scales));
  }
  return absl::OkStatus();
}

absl::Status KeepInt8Part(Device& device, LinearWorkspace& workspace,
                          std::span<const WeightView> views, LinearPart* part) {
  if (views[0].cols > kMaxInt8LinearCols) {
    return absl::UnimplementedError(absl::StrCat(std::string(views[0].scheme->name),
                                                 " on CUDA takes up to ", kMaxInt8LinearCols,
                                                 " input features; a weight has ", views[0].cols));
  }
  if (part->kind == LinearKind::kInt8 && !TakesLinearWgmma(device.info(), views[0].cols)) {
    if (absl::Status status = workspace.ReserveSums(device, SumBytes(device.info()));
        !status.ok()) {
      return status;
    }
  }
  return KeepRowsPart(device, views, part);
}

absl::Status KeepE4M3Part(Device& device, LinearWorkspace& workspace,
                          std::span<const WeightView> views, LinearPart* part) {
  for (const WeightView& view : views) {
    const int64_t features = std::min(view.rows, kWidenedFeatures);
    if (absl::Status status = workspace.ReserveTokens(
            device, static_cast<size_t>(kWidenedTokens * view.cols) * sizeof(uint16_t));
        !status.ok()) {
      return status;
    }
    if (absl::Status status = workspace.ReserveSums(
            device, static_cast<size_t>(kWidenedTokens * features) * sizeof(float));
        !status.ok()) {
      return status;
    }
  }
  return KeepRowsPart(device, views, part);
}

// The weights as the part's kind keeps them.
absl::Status KeepPart(Device& device, LinearWorkspace& workspace, std::span<const WeightView> views,
                      LinearPart* part) {
  switch (part->kind) {
    case LinearKind::kExact:
    case LinearKind::kDense:
    case LinearKind::kStored:
      return UploadPart(device, views, part);
    case LinearKind::kPacked4:
    case LinearKind::kPacked8:
      if (absl::Status status = PackPart(device, views, part); !status.ok()) return status;
      return workspace.ReserveTiles(device, part->packed.layout.n_tiles);
    case LinearKind::kInt8:
    case LinearKind::kInt8Outliers:
      return KeepInt8Part(device, workspace, views, part);
    case LinearKind::kE4M3:
      return KeepE4M3Part(device, workspace, views, part);
  }
  return absl::OkStatus();
}

absl::Status Reserve(Device& device, size_t bytes, DeviceMemory* memory) {
  if (bytes <= memory->bytes()) return absl::OkStatus();
  *memory = DeviceMemory();
  absl::StatusOr<DeviceMemory> allocated = DeviceMemory::Allocate(device, bytes);
  if (!allocated.ok()) return allocated.status();
  *memory = *std::move(allocated);
  return absl::OkStatus();
}

}  // namespace

LinearKind LinearKindOf(const Scheme& scheme, Mode mode) {
  if (scheme.outliers) return LinearKind::kInt8Outliers;
  if (scheme.activation == Activation::kInt8PerToken) return LinearKind::kInt8;
  if (scheme.activation == Activation::kE4M3PerToken) return LinearKind::kE4M3;
  if (mode == Mode::kExact) return LinearKind::kExact;
  if (HasPackedFormat(scheme)) {
    return scheme.bits() == 4 ? LinearKind::kPacked4 : LinearKind::kPacked8;
  }
  return scheme.code == DType::kBF16 ? LinearKind::kDense : LinearKind::kStored;
}

size_t CudaLinear::resident_bytes() const {
  size_t bytes = 0;
  for (const LinearPart& part : parts) {
    for (const DeviceMemory& memory : part.memory) bytes += memory.bytes();
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<LinearWorkspace>> LinearWorkspace::Make(Device& device,
                                                                       const CudaOptions& options) {
  auto workspace = std::make_unique<LinearWorkspace>();
  workspace->options_ = options;
  absl::StatusOr<DeviceMemory> parts = DeviceMemory::Allocate(
      device, static_cast<size_t>(LinearPartFloats(device.info().multiprocessors)) * sizeof(float));
  if (!parts.ok()) return parts.status();
  workspace->parts_ = *std::move(parts);
  return workspace;
}

LinearScratch LinearWorkspace::packed() const {
  return {parts_.as<float>(), arrived_.as<int32_t>()};
}

absl::Status LinearWorkspace::ReserveDequantized(Device& device, size_t bytes) {
  return Reserve(device, bytes, &dequantized_);
}
absl::Status LinearWorkspace::ReserveTiles(Device& device, int64_t output_tiles) {
  return Reserve(device, static_cast<size_t>(output_tiles * kMaxLinearPasses) * sizeof(int32_t),
                 &arrived_);
}
absl::Status LinearWorkspace::ReserveTokens(Device& device, size_t bytes) {
  return Reserve(device, bytes, &tokens_);
}
absl::Status LinearWorkspace::ReserveSums(Device& device, size_t bytes) {
  return Reserve(device, bytes, &sums_);
}

absl::StatusOr<DeviceWeight> UploadWeight(Device& device, const WeightView& view,
                                          std::vector<DeviceMemory>* memory) {
  WeightView copy = view;
  for (const StoredTensor& tensor : StoredTensors(view)) {
    const void* host = view.Get(tensor.part);
    const auto bytes = static_cast<size_t>(tensor.bytes());
    if (host == nullptr || bytes == 0) continue;
    absl::StatusOr<DeviceMemory> allocated = DeviceMemory::Allocate(device, bytes);
    if (!allocated.ok()) return allocated.status();
    device.CopyIn(allocated->data(), host, bytes);
    copy.Set(tensor.part, allocated->data());
    memory->push_back(*std::move(allocated));
  }
  DeviceWeight weight;
  weight.scheme = *view.scheme;
  weight.rows = view.rows;
  weight.cols = view.cols;
  weight.codes = copy.codes;
  weight.scales = copy.scales;
  weight.zeros = copy.zeros;
  weight.nested = copy.nested;
  weight.outliers = copy.outliers;
  weight.outlier_weights = copy.outlier_weights;
  weight.outlier_features = copy.outlier_features;
  return weight;
}

absl::StatusOr<std::unique_ptr<CudaLinear>> PrepareCudaLinear(Device& device,
                                                              LinearWorkspace& workspace,
                                                              const LinearGroup& group, Mode mode) {
  NIBBLE_CHECK(!group.weights.empty() && group.weights.size() <= kMaxGroupWeights);
  auto linear = std::make_unique<CudaLinear>();
  std::vector<ActFormat> wanted;  // CudaLinear::formats with the lists of the views
  for (size_t i = 0; i < group.weights.size();) {
    const WeightView& first = group.weights[i];
    size_t end = i + 1;
    while (end < group.weights.size() && SharesPart(first, group.weights[end], mode)) ++end;
    const std::span<const WeightView> views(group.weights.data() + i, end - i);
    LinearPart part;
    part.first = static_cast<int>(i);
    part.count = static_cast<int>(views.size());
    part.kind = LinearKindOf(*first.scheme, mode);
    if (absl::Status status = KeepPart(device, workspace, views, &part); !status.ok()) {
      return status;
    }
    ActFormat format = InputFormat(first, mode);
    const auto found =
        std::find_if(wanted.begin(), wanted.end(),
                     [&format](const ActFormat& other) { return SameInput(other, format); });
    part.format = static_cast<int>(found - wanted.begin());
    if (found == wanted.end()) {
      wanted.push_back(format);
      format.outliers.features = part.weights[0].outlier_features;
      linear->formats.push_back(format);
    }
    for (size_t w = 0; w < views.size(); ++w) {
      const float* bias = i + w < group.biases.size() ? group.biases[i + w] : nullptr;
      if (bias == nullptr) continue;
      const size_t bytes = static_cast<size_t>(views[w].rows) * sizeof(float);
      absl::StatusOr<DeviceMemory> memory = DeviceMemory::Allocate(device, bytes);
      if (!memory.ok()) return memory.status();
      device.CopyIn(memory->data(), bias, bytes);
      part.biases[w] = memory->as<float>();
      part.memory.push_back(*std::move(memory));
    }
    if (WantsSlices(part.kind)) {
      for (const WeightView& view : views) {
        const size_t row = static_cast<size_t>(view.cols) * sizeof(uint16_t);
        const size_t whole = row * static_cast<size_t>(view.rows);
        if (absl::Status status = workspace.ReserveDequantized(
                device, std::min(whole, std::max(row * kSliceStep, kSliceBytes)));
            !status.ok()) {
          return status;
        }
      }
    }
    linear->parts.push_back(std::move(part));
    i = end;
  }
  if (absl::Status status = device.Sync(); !status.ok()) return status;
  return linear;
}

EmbeddingTable TableOf(const LinearPart& part) {
  NIBBLE_CHECK(part.count == 1);
  const DeviceWeight& weight = part.weights[0];
  switch (part.kind) {
    case LinearKind::kPacked4:
    case LinearKind::kPacked8:
      return PackedTable{part.packed, weight.cols};
    case LinearKind::kExact:
    case LinearKind::kDense:
    case LinearKind::kStored:
    case LinearKind::kInt8:
    case LinearKind::kInt8Outliers:
    case LinearKind::kE4M3:
      break;
  }
  return StoredTable{weight};
}

}  // namespace nibble
