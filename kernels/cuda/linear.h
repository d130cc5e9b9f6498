// SPDX-License-Identifier: Apache-2.0
// The linears of the CUDA backend: how each weight is kept (prepare_linear.cc), and which kernel
// multiplies it for how many tokens (kLinearTable in linear.cc; kInvariantTable where results must
// not depend on that).
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_options.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/device_weight.h"
#include "kernels/cuda/embed.h"
#include "kernels/cuda/linear_packed.h"

namespace nibble {

// How a weight is kept on the device. The rows of kLinearTable name one each.
enum class LinearKind : uint8_t {
  kExact,         // as stored, for products in f32
  kDense,         // as stored: bf16
  kStored,        // as stored, in any other scheme
  kPacked4,       // PackedLayout (packed_weight.h), int4
  kPacked8,       // and int8
  kInt8,          // as stored, with scales in f32 (linear_rows.h)
  kInt8Outliers,  // the same, with outlier features beside
  kE4M3,          // and e4m3
};
LinearKind LinearKindOf(const Scheme& scheme, Mode mode);

// Weights of a group that one launch multiplies: neighbours that are kept in the same way.
struct LinearPart {
  LinearKind kind = LinearKind::kStored;
  int first = 0;  // index of the first weight in the group
  int count = 1;
  int format = 0;                                        // index of the input in LinearArgs::in
  std::array<DeviceWeight, kMaxGroupWeights> weights{};  // pointers only where kept as stored
  std::array<const float*, kMaxGroupWeights> biases{};
  PackedWeight packed;                                  // kPacked4, kPacked8: all weights
  std::array<const float*, kMaxGroupWeights> scales{};  // kInt8..., kE4M3: of a weight each
  std::vector<DeviceMemory> memory;
};

class CudaLinear : public PreparedLinear {
 public:
  std::span<const ActFormat> input_formats() const override { return formats; }
  size_t resident_bytes() const override;

  std::vector<ActFormat> formats;
  std::vector<LinearPart> parts;
};

// Scratch that the products of one device share, in stream order.
class LinearWorkspace {
 public:
  static absl::StatusOr<std::unique_ptr<LinearWorkspace>> Make(Device& device,
                                                               const CudaOptions& options = {});
  bool batch_invariant() const { return options_.batch_invariant; }
  LinearScratch packed() const;
  // A slice of dequantized weights: bf16, this many bytes.
  uint16_t* dequantized() const { return dequantized_.as<uint16_t>(); }
  size_t dequantized_bytes() const { return dequantized_.bytes(); }
  // For products of widened codes: tokens in bf16.
  uint16_t* tokens() const { return tokens_.as<uint16_t>(); }
  // Sums of four bytes that are to be scaled.
  void* sums() const { return sums_.data(); }
  // Each grows to at least this many bytes; never during a step.
  absl::Status ReserveDequantized(Device& device, size_t bytes);
  absl::Status ReserveTiles(Device& device, int64_t output_tiles);
  absl::Status ReserveTokens(Device& device, size_t bytes);
  absl::Status ReserveSums(Device& device, size_t bytes);

 private:
  CudaOptions options_;
  DeviceMemory parts_, arrived_, dequantized_, tokens_, sums_;
};

// ---- Sizes of that scratch

// Weights are dequantized in slices of output features of at most this size, whole output tiles:
// the library takes it that every matrix is aligned to 256 bytes.
inline constexpr size_t kSliceBytes = size_t{128} << 20;
inline constexpr int64_t kSliceStep = kPackedTile;
// Codes of e4m3 that the library does not multiply are widened for so many tokens and output
// features at a time.
inline constexpr int64_t kWidenedTokens = 2048;
inline constexpr int64_t kWidenedFeatures = 8192;
// Sums of int8 products: a slice of tokens and output features at a time, which the second-level
// cache holds until they are scaled.
inline size_t SumBytes(const DeviceInfo& device) {
  return std::max(device.cache_bytes / 2, size_t{1} << 18);
}

// Backend::Prepare.
absl::StatusOr<std::unique_ptr<CudaLinear>> PrepareCudaLinear(Device& device,
                                                              LinearWorkspace& workspace,
                                                              const LinearGroup& group, Mode mode);

// Copies the stored tensors of a weight to the device; `memory` receives what was allocated.
absl::StatusOr<DeviceWeight> UploadWeight(Device& device, const WeightView& view,
                                          std::vector<DeviceMemory>* memory);

// The table that a part of one weight, a tied head, embeds from.
EmbeddingTable TableOf(const LinearPart& part);

// Backend::Linear. An error of the library surfaces here.
absl::Status RunCudaLinear(Device& device, LinearWorkspace& workspace, const LinearArgs& args);

// What multiplies: a thread per output, products of warps, products of warpgroups, or the library,
// of what is dequantized or widened before or scaled afterwards.
enum class LinearWay : uint8_t { kScalar, kWarps, kWarpgroups, kLibrary };
inline constexpr const char* kLinearWayNames[] = {"scalar", "warps", "warpgroups", "library"};

// The same by one way, whatever number of tokens the tables take it for; `chosen` becomes whether
// they take it for this one. Unimplemented: there is none for the weight on this device. For
// benchmarks, which find where the tables should change over.
absl::Status RunCudaLinearBy(LinearWay way, Device& device, LinearWorkspace& workspace,
                             const LinearArgs& args, bool* chosen);

}  // namespace nibble
