// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/cuda_weight_rounding.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/cuda/cholesky.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/ordered_product.h"
#include "kernels/cuda/round_weight.h"

namespace nibble {
namespace {

// Weights that are worked on at once; no result depends on it.
constexpr int64_t kSlabWeights = int64_t{1} << 26;

// The device memory of one call; after the first failure pointers are null and nothing is copied.
class Scratch {
 public:
  explicit Scratch(Device& device) : device_(device) {}

  template <typename T>
  T* Take(int64_t count) {
    if (!status_.ok()) return nullptr;
    absl::StatusOr<DeviceMemory> memory =
        DeviceMemory::Allocate(device_, static_cast<size_t>(count) * sizeof(T));
    if (!memory.ok()) {
      status_ = memory.status();
      return nullptr;
    }
    memory_.push_back(*std::move(memory));
    return memory_.back().as<T>();
  }
  template <typename T>
  T* Put(const T* host, int64_t count) {
    T* memory = Take<T>(count);
    if (memory != nullptr) device_.CopyIn(memory, host, static_cast<size_t>(count) * sizeof(T));
    return memory;
  }
  const absl::Status& status() const { return status_; }

 private:
  Device& device_;
  std::vector<DeviceMemory> memory_;
  absl::Status status_;
};

int64_t SlabRows(int64_t rows, int64_t cols) {
  return std::min(rows, std::max<int64_t>(1, kSlabWeights / cols));
}

// sums[i] = d_i^T H d_i, with H as LaunchHalf leaves it; product is scratch like d.
void LaunchQuadraticForm(Device& device, const float* d, int64_t rows, int64_t cols,
                         const float* half, float* product, double* sums) {
  OrderedProductArgs args;
  args.a = d;
  args.b = half;
  args.c = product;
  args.lda = args.ldb = args.ldc = cols;
  args.m = rows;
  args.n = args.k = cols;
  args.fresh = args.triangular = true;
  LaunchOrderedProduct(device, args);
  LaunchRowDots(device, {product, d, rows, cols, sums, 2.0});
}

class CudaWeightRounding final : public WeightRounding {
 public:
  explicit CudaWeightRounding(Device& device) : device_(device) {}

  absl::Status ClipScales(const WeightToRound& weight, const float* importance, float* scale,
                          int8_t* zero) override;
  absl::Status NearestCodes(const WeightToRound& weight, ScalesView scales, int8_t* codes) override;
  absl::StatusOr<bool> UpperFactorOfInverse(float* h, int64_t n) override;
  absl::Status GptqCodes(const GptqCall& call, int8_t* codes) override;
  absl::Status QuadraticForm(const float* d, int64_t rows, int64_t cols, const float* h,
                             int64_t ldh, double* result) override;

 private:
  Device& device_;
};

absl::Status CudaWeightRounding::ClipScales(const WeightToRound& weight, const float* importance,
                                            float* scale, int8_t* zero) {
  const int64_t cols = weight.cols;
  const int64_t groups = weight.scheme->GroupsPerRow(cols);
  const int64_t slab = SlabRows(weight.rows, cols);
  Scratch scratch(device_);
  auto* values = scratch.Take<float>(slab * cols);
  const float* weights = importance == nullptr ? nullptr : scratch.Put(importance, cols);
  auto* scales = scratch.Take<float>(slab * groups);
  auto* zeros = scratch.Take<int8_t>(slab * groups);
  if (!scratch.status().ok()) return scratch.status();
  for (int64_t first = 0; first < weight.rows; first += slab) {
    const int64_t rows = std::min(slab, weight.rows - first);
    const auto count = static_cast<size_t>(rows * groups);
    device_.CopyIn(values, weight.values + first * cols,
                   static_cast<size_t>(rows * cols) * sizeof(float));
    LaunchClipScales(device_, {*weight.scheme, rows, cols, values, weights, scales, zeros});
    device_.CopyOut(scale + first * groups, scales, count * sizeof(float));
    device_.CopyOut(zero + first * groups, zeros, count);
  }
  return device_.Sync();
}

absl::Status CudaWeightRounding::NearestCodes(const WeightToRound& weight, ScalesView scales,
                                              int8_t* codes) {
  const int64_t cols = weight.cols;
  const int64_t groups = weight.scheme->GroupsPerRow(cols);
  const int64_t slab = SlabRows(weight.rows, cols);
  Scratch scratch(device_);
  auto* values = scratch.Take<float>(slab * cols);
  const float* scale = scratch.Put(scales.scale, weight.rows * groups);
  const int8_t* zero = scratch.Put(scales.zero, weight.rows * groups);
  auto* nearest = scratch.Take<int8_t>(slab * cols);
  if (!scratch.status().ok()) return scratch.status();
  for (int64_t first = 0; first < weight.rows; first += slab) {
    const int64_t rows = std::min(slab, weight.rows - first);
    const auto count = static_cast<size_t>(rows * cols);
    device_.CopyIn(values, weight.values + first * cols, count * sizeof(float));
    LaunchNearest(device_, {*weight.scheme, rows, cols, values, scale + first * groups,
                            zero + first * groups, nearest, nullptr, nullptr, nullptr});
    device_.CopyOut(codes + first * cols, nearest, count);
  }
  return device_.Sync();
}

absl::StatusOr<bool> CudaWeightRounding::UpperFactorOfInverse(float* h, int64_t n) {
  const size_t bytes = static_cast<size_t>(n * n) * sizeof(float);
  Scratch scratch(device_);
  auto* matrix = scratch.Take<float>(n * n);
  auto* rest = scratch.Take<uint8_t>(static_cast<int64_t>(CholeskyScratchBytes(n)));
  auto* failed = scratch.Take<int32_t>(1);
  if (!scratch.status().ok()) return scratch.status();
  device_.CopyIn(matrix, h, bytes);
  LaunchCholesky(device_, {matrix, n, rest, failed});
  int32_t flag = 0;
  device_.CopyOut(h, matrix, bytes);
  device_.CopyOut(&flag, failed, sizeof(flag));
  if (absl::Status status = device_.Sync(); !status.ok()) return status;
  return flag == 0;
}

absl::Status CudaWeightRounding::GptqCodes(const GptqCall& call, int8_t* codes) {
  const Scheme& scheme = *call.weight.scheme;
  const int64_t cols = call.weight.cols;
  const int64_t groups = scheme.GroupsPerRow(cols);
  const int64_t slab = SlabRows(call.weight.rows, cols);
  Scratch scratch(device_);
  float* half = scratch.Put(call.hessian, cols * cols);
  const float* factor = scratch.Put(call.factor, cols * cols);
  const int64_t* order = scratch.Put(call.order, cols);
  const float* all_scales = scratch.Put(call.scales.scale, call.weight.rows * groups);
  const int8_t* all_zeros = scratch.Put(call.scales.zero, call.weight.rows * groups);
  auto* weight = scratch.Take<float>(slab * cols);
  auto* work = scratch.Take<float>(slab * cols);  // in order; later a product
  auto* error = scratch.Take<float>(slab * cols);
  auto* update = scratch.Take<float>(slab * call.block);
  auto* chosen = scratch.Take<int8_t>(slab * cols);
  auto* own = scratch.Take<double>(slab);
  auto* other = scratch.Take<double>(slab);
  if (!scratch.status().ok()) return scratch.status();

  LaunchHalf(device_, half, cols);
  for (int64_t top = 0; top < call.weight.rows; top += slab) {
    const int64_t rows = std::min(slab, call.weight.rows - top);
    const float* scale = all_scales + top * groups;
    const int8_t* zero = all_zeros + top * groups;
    device_.CopyIn(weight, call.weight.values + top * cols,
                   static_cast<size_t>(rows * cols) * sizeof(float));
    LaunchGatherColumns(device_, {weight, order, work, rows, cols});
    // What columns [from, to) are to receive from those in [begin, begin + count).
    const auto push = [&](int64_t block, int64_t begin, int64_t count, int64_t from, int64_t to,
                          bool chain) {
      OrderedProductArgs args;
      args.a = update + (begin - block);
      args.lda = call.block;
      args.b = factor + begin * cols + from;
      args.c = work + from;
      args.ldb = args.ldc = cols;
      args.m = rows;
      args.n = to - from;
      args.k = count;
      args.sign = -1.0f;
      args.chain = chain;
      if (args.n > 0) LaunchOrderedProduct(device_, args);
    };
    for (int64_t block = 0; block < cols; block += call.block) {
      const int64_t end = std::min(block + call.block, cols);
      for (int64_t first = block; first < end; first += kGptqColumns) {
        const int64_t count = std::min<int64_t>(kGptqColumns, end - first);
        LaunchGptqColumns(
            device_, {scheme, rows, cols, weight, scale, zero, work, factor, order, first, count,
                      chosen, error, update + (first - block), call.block});
        // Within a block updates are made at once, one after the other.
        push(block, first, count, first + count, end, /*chain=*/true);
      }
      push(block, block, end - block, end, cols, /*chain=*/false);
    }
    NearestArgs nearest{scheme, rows, cols, weight, scale, zero, nullptr, error, nullptr, nullptr};
    LaunchQuadraticForm(device_, error, rows, cols, half, work, own);
    LaunchNearest(device_, nearest);
    LaunchQuadraticForm(device_, error, rows, cols, half, work, other);
    nearest.codes = chosen;
    nearest.error = nullptr;
    nearest.own = own;
    nearest.other = other;
    LaunchNearest(device_, nearest);
    device_.CopyOut(codes + top * cols, chosen, static_cast<size_t>(rows * cols));
  }
  return device_.Sync();
}

absl::Status CudaWeightRounding::QuadraticForm(const float* d, int64_t rows, int64_t cols,
                                               const float* h, int64_t ldh, double* result) {
  const int64_t slab = SlabRows(rows, cols);
  std::vector<float> packed;
  if (ldh != cols) {
    packed.resize(static_cast<size_t>(cols * cols));
    for (int64_t i = 0; i < cols; ++i) {
      std::copy(h + i * ldh, h + i * ldh + cols, packed.begin() + i * cols);
    }
    h = packed.data();
  }
  Scratch scratch(device_);
  float* half = scratch.Put(h, cols * cols);
  auto* rows_of_d = scratch.Take<float>(slab * cols);
  auto* product = scratch.Take<float>(slab * cols);
  auto* sums = scratch.Take<double>(slab);
  if (!scratch.status().ok()) return scratch.status();
  LaunchHalf(device_, half, cols);
  for (int64_t first = 0; first < rows; first += slab) {
    const int64_t count = std::min(slab, rows - first);
    device_.CopyIn(rows_of_d, d + first * cols, static_cast<size_t>(count * cols) * sizeof(float));
    LaunchQuadraticForm(device_, rows_of_d, count, cols, half, product, sums);
    device_.CopyOut(result + first, sums, static_cast<size_t>(count) * sizeof(double));
  }
  return device_.Sync();
}

}  // namespace

std::unique_ptr<WeightRounding> MakeCudaWeightRounding(Device& device) {
  return std::make_unique<CudaWeightRounding>(device);
}

}  // namespace nibble
