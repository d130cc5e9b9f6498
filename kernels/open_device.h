// SPDX-License-Identifier: Apache-2.0
// Which device runs a model, by name: "auto", "cpu" or "cuda:N" (the N-th GPU, from 0).
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_options.h"

namespace nibble {

struct OpenedDevice {
  std::unique_ptr<Backend> backend;
  bool gpu = false;
  // One line for people: what runs, and why not a GPU where one was looked for.
  // "cpu (avx512-vnni, 2 threads); no GPU: libnibble_cuda.so is not beside the program"
  std::string line;
};

// InvalidArgument if `device` is none of the names.
absl::Status CheckDeviceName(std::string_view device);

// auto: the first GPU if the CUDA backend starts, otherwise the CPU. cuda:N: that GPU, or NotFound
// saying what is missing (library, driver, device). `cpu` applies where the CPU is chosen, `cuda`
// where a GPU is; naming an instruction tier chooses it, and beside cuda:N is InvalidArgument. The
// CUDA backend is libnibble_cuda.so beside the running program; it is opened once and never closed.
absl::StatusOr<OpenedDevice> OpenDevice(std::string_view device, const CpuOptions& cpu,
                                        const CudaOptions& cuda = {});

}  // namespace nibble
