// SPDX-License-Identifier: Apache-2.0
#include "kernels/open_device.h"

#include <dlfcn.h>

#include <charconv>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/entry.h"

namespace nibble {
namespace {

constexpr std::string_view kCudaPrefix = "cuda:";
constexpr int kMaxOrdinal = 63;

// The N of "cuda:N", or -1.
int CudaOrdinal(std::string_view device) {
  if (device.substr(0, kCudaPrefix.size()) != kCudaPrefix) return -1;
  const std::string_view digits = device.substr(kCudaPrefix.size());
  int ordinal = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), ordinal);
  const bool whole = error == std::errc() && end == digits.data() + digits.size();
  return whole && ordinal >= 0 && ordinal <= kMaxOrdinal ? ordinal : -1;
}

absl::StatusOr<std::unique_ptr<Backend>> OpenCuda(int ordinal, const CudaOptions& options) {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path library = program.parent_path() / "libnibble_cuda.so";
  if (error || !std::filesystem::exists(library, error)) {
    return absl::NotFoundError("libnibble_cuda.so is not beside the program");
  }
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return absl::NotFoundError(dlerror());
  const auto open = reinterpret_cast<OpenCudaBackend*>(dlsym(handle, kOpenCudaBackend));
  if (open == nullptr) return absl::NotFoundError(absl::StrCat(library.string(), " has no entry"));
  std::string why;
  Backend* backend = open(ordinal, options, &why);
  if (backend == nullptr) return absl::NotFoundError(why);
  return std::unique_ptr<Backend>(backend);
}

}  // namespace

absl::Status CheckDeviceName(std::string_view device) {
  if (device == "auto" || device == "cpu" || CudaOrdinal(device) >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("device is \"", std::string(device),
                                                 "\"; it must be auto, cpu or cuda:N with N in 0..",
                                                 kMaxOrdinal));
}

absl::StatusOr<OpenedDevice> OpenDevice(std::string_view device, const CpuOptions& cpu,
                                        const CudaOptions& cuda) {
  if (absl::Status status = CheckDeviceName(device); !status.ok()) return status;
  if (!cpu.tier.empty() && CudaOrdinal(device) >= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("tier is \"", cpu.tier, "\", of the CPU; device is ", std::string(device)));
  }
  std::string why;
  if (device != "cpu" && cpu.tier.empty()) {
    absl::StatusOr<std::unique_ptr<Backend>> gpu =
        OpenCuda(device == "auto" ? 0 : CudaOrdinal(device), cuda);
    if (gpu.ok()) {
      std::string line = (*gpu)->Description();
      return OpenedDevice{*std::move(gpu), true, std::move(line)};
    }
    if (device != "auto") return gpu.status();
    why = absl::StrCat("; no GPU: ", std::string(gpu.status().message()));
  }
  absl::StatusOr<std::unique_ptr<Backend>> backend = MakeCpuBackend(cpu);
  if (!backend.ok()) return backend.status();
  std::string line = absl::StrCat((*backend)->Description(), why);
  return OpenedDevice{*std::move(backend), false, std::move(line)};
}

}  // namespace nibble
