// SPDX-License-Identifier: Apache-2.0
// Matrix products of cuBLASLt, which is opened at run time: a machine without it can still start.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"

namespace nibble {

class Blas {
 public:
  // As Device::MedianSeconds.
  using Timer = std::function<absl::StatusOr<double>(const std::function<absl::Status()>& launches,
                                                     int warmups, int rounds)>;
  // `stream` is a cudaStream_t of the current device. NotFound if the library is not there.
  static absl::StatusOr<std::unique_ptr<Blas>> Open(void* stream, const DeviceInfo& info,
                                                    const std::string& cache_directory,
                                                    Timer timer);
  ~Blas();
  // As Device::Multiply. The first product of a bucket of tokens (product_choices.h) times what the
  // library would choose and keeps the fastest, for this and for later processes. While a stream is
  // recorded, and for products that add to their result, nothing is timed: a product whose bucket
  // is not known takes the library's first choice.
  absl::Status Multiply(const Matmul& matmul);
  // As Device::E4M3ScaleModes.
  std::vector<std::string> E4M3ScaleModes() const;
  // A line that people should read, or "".
  const std::string& note() const;

 private:
  struct Impl;
  explicit Blas(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
