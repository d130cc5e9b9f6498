// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/entry.h"

#include "kernels/cuda/cuda_backend.h"

extern "C" __attribute__((visibility("default"))) nibble::Backend* nibble_open_cuda_backend(
    int ordinal, const nibble::CudaOptions& options, std::string* why) {
  absl::StatusOr<std::unique_ptr<nibble::Device>> device = nibble::Device::Open(ordinal);
  if (!device.ok()) {
    *why = std::string(device.status().message());
    return nullptr;
  }
  absl::StatusOr<std::unique_ptr<nibble::Backend>> backend =
      nibble::MakeCudaBackend(*std::move(device), options);
  if (!backend.ok()) {
    *why = std::string(backend.status().message());
    return nullptr;
  }
  return backend->release();
}
