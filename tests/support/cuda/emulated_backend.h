// SPDX-License-Identifier: Apache-2.0
// The whole CUDA backend on the emulator.
#pragma once

#include <memory>

#include "kernels/cuda/cuda_backend.h"

namespace nibble::testing {

inline absl::StatusOr<std::unique_ptr<Backend>> MakeEmulatedBackend(
    const CudaOptions& options = {}) {
  absl::StatusOr<std::unique_ptr<Device>> device = Device::Open(0);
  if (!device.ok()) return device.status();
  return MakeCudaBackend(*std::move(device), options);
}

}  // namespace nibble::testing
