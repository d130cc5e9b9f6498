// SPDX-License-Identifier: Apache-2.0
// Matrix products of cuBLASLt, which is opened at run time: a machine without it can still start.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"

namespace nibble {

class Blas {
 public:
  // `stream` is a cudaStream_t of the current device. NotFound if the library is not there.
  static absl::StatusOr<std::unique_ptr<Blas>> Open(void* stream);
  ~Blas();
  // As Device::Multiply. The algorithm is the library's first choice for the shape, asked for once.
  absl::Status Multiply(const Matmul& matmul);

 private:
  struct Impl;
  explicit Blas(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
