// SPDX-License-Identifier: Apache-2.0
// What the backend needs of a GPU besides kernels: memory, copies, the library's matrix products.
// device.cc implements it on CUDA; tests/support/cuda/emulated_device.cc in host memory.
//
// Everything runs in order on one stream. Driven by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/launch.h"
#include "kernels/dtype.h"

namespace nibble {

struct DeviceInfo {
  std::string name;          // "NVIDIA H200"
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  size_t shared_bytes_per_block = 0;  // at most, after opting in
  size_t cache_bytes = 0;             // second level
  size_t total_bytes = 0;
  std::string note;  // a line that people should read, or ""
};

// d (m, n) = a (m, k) * b (n, k)^T, all row-major with these leading dimensions (elements).
// Sums are f32 (bf16, e4m3) or int32 (int8). With e4m3, element (i, j) is multiplied by a_scales[i]
// * b_scales[j].
struct Matmul {
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;
  const void* b = nullptr;
  void* d = nullptr;
  int64_t lda = 0, ldb = 0, ldd = 0;
  DType in = DType::kBF16;          // kBF16 | kI8 | kF8E4M3
  DType out = DType::kBF16;         // kBF16 | kF32; kI32 for kI8
  bool accumulate = false;          // d += (kF32 only)
  const float* a_scales = nullptr;  // (m), with kF8E4M3
  const float* b_scales = nullptr;  // (n), with kF8E4M3
};

// Launches that were recorded instead of run. Holds nothing of what they work on; freed before its
// device.
class Recording {
 public:
  virtual ~Recording() = default;
};

class Device {
 public:
  // NotFound when there is no driver or no such device, naming what is missing.
  static absl::StatusOr<std::unique_ptr<Device>> Open(int ordinal);
  ~Device();

  const DeviceInfo& info() const { return info_; }
  // Makes the device current for the calling thread: launches go to the current one.
  Stream& stream();

  // Zeroed memory, aligned to 256 bytes; nullptr when there is not enough.
  void* Allocate(size_t bytes);
  void Free(void* memory);
  size_t FreeBytes() const;

  // The host memory of CopyIn may be reused at once; that of CopyOut holds the bytes after Sync, or
  // Wait for a later mark. Up to kStagedBytes neither waits for the device.
  static constexpr size_t kStagedBytes = size_t{2} << 20;
  void CopyIn(void* device, const void* host, size_t bytes);
  void CopyOut(void* host, const void* device, size_t bytes);
  void Copy(void* to, const void* from, size_t bytes);
  void Zero(void* device, size_t bytes);

  // Unimplemented if the library has no algorithm for it. The choice of algorithm is kept per shape
  // and is the same for the life of the device. The first product of a bucket of tokens may wait
  // for the device and compute itself several times over, to choose by time; the choice is kept in
  // a file of the user's cache directory (product_choices.h). Nothing is timed while launches are
  // recorded.
  absl::Status Multiply(const Matmul& matmul);

  // How the library takes scales of e4m3 operands, both in the same way: what it has an algorithm
  // for at 4096 x 4096 x 4096. Of those Multiply uses "row". For people.
  std::vector<std::string> E4M3ScaleModes();

  // Records what `launches` launches (kernels, products, copies on this device, nothing else). The
  // library must have made its choices: it is run once before.
  absl::StatusOr<std::unique_ptr<Recording>> Record(const std::function<absl::Status()>& launches);
  // Launches it all again. What is replayed must be done before its recording is freed.
  void Replay(const Recording& recording);

  // As in Backend.
  static constexpr uint64_t kTimedMarks = 8;
  uint64_t Mark();
  absl::Status Wait(uint64_t mark);
  double Seconds(uint64_t from, uint64_t to);  // 0 if `from` is too old

  // Seconds of one run of `launches` (which launches kernels and products on this device, nothing
  // else), the median of `rounds` after `warmups`. On a GPU the launches are recorded once as a
  // graph that is replayed, so that neither the host nor gaps between launches count.
  absl::StatusOr<double> MedianSeconds(const std::function<absl::Status()>& launches, int warmups,
                                       int rounds);

  // Waits. Errors of launches, copies and kernels surface here and in Wait; after one the device is
  // not used again.
  absl::Status Sync();

 private:
  struct Impl;
  explicit Device(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
  DeviceInfo info_;
  Stream stream_;
};

}  // namespace nibble
