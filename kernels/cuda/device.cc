// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/blas.h"
#include "kernels/cuda/product_choices.h"

namespace nibble {
namespace {

std::string Text(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + " (" + cudaGetErrorString(error) + ")";
}

}  // namespace

struct Device::Impl {
  int ordinal = 0;
  cudaStream_t stream = nullptr;
  std::unique_ptr<Blas> blas;

  // Notes the first error of the stream.
  void Note(Stream& launches, cudaError_t error) const {
    if (error != cudaSuccess && launches.error == 0) launches.error = error;
  }
};

Device::Device(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Device::~Device() {
  if (impl_->stream != nullptr) cudaStreamDestroy(impl_->stream);
}

absl::StatusOr<std::unique_ptr<Device>> Device::Open(int ordinal) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice) {
    return absl::NotFoundError("no CUDA device: " + Text(error));
  }
  if (error != cudaSuccess) return absl::NotFoundError("CUDA does not start: " + Text(error));
  if (ordinal < 0 || ordinal >= count) {
    return absl::NotFoundError("cuda:" + std::to_string(ordinal) + " does not exist; devices: 0.." +
                               std::to_string(count - 1));
  }
  std::unique_ptr<Device> device(new Device(std::make_unique<Impl>()));
  Impl& impl = *device->impl_;
  impl.ordinal = ordinal;
  cudaDeviceProp properties{};
  error = cudaSetDevice(ordinal);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, ordinal);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&impl.stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) {
    return absl::NotFoundError("cuda:" + std::to_string(ordinal) + ": " + Text(error));
  }
  if (properties.major < 8) {
    return absl::NotFoundError("cuda:" + std::to_string(ordinal) + " (" + properties.name +
                               ") has compute capability " + std::to_string(properties.major) +
                               "." + std::to_string(properties.minor) + "; 8.0 is the least");
  }
  device->info_ = DeviceInfo{properties.name,
                             properties.major,
                             properties.minor,
                             properties.multiProcessorCount,
                             properties.sharedMemPerBlockOptin,
                             static_cast<size_t>(properties.l2CacheSize),
                             properties.totalGlobalMem,
                             ""};
  device->stream_.handle = impl.stream;
  auto blas = Blas::Open(impl.stream, device->info_, UserCacheDirectory(),
                         [&self = *device](const auto& launches, int warmups, int rounds) {
                           return self.MedianSeconds(launches, warmups, rounds);
                         });
  if (!blas.ok()) return blas.status();
  impl.blas = *std::move(blas);
  device->info_.note = impl.blas->note();
  return device;
}

Stream& Device::stream() {
  impl_->Note(stream_, cudaSetDevice(impl_->ordinal));
  return stream_;
}

void* Device::Allocate(size_t bytes) {
  cudaSetDevice(impl_->ordinal);
  void* memory = nullptr;
  if (cudaMalloc(&memory, bytes > 0 ? bytes : 1) != cudaSuccess) {
    cudaGetLastError();  // running out of memory is not an error of the stream
    return nullptr;
  }
  impl_->Note(stream_, cudaMemsetAsync(memory, 0, bytes, impl_->stream));
  return memory;
}

// The stream may still use it: waits.
void Device::Free(void* memory) { impl_->Note(stream_, cudaFree(memory)); }

size_t Device::FreeBytes() const {
  cudaSetDevice(impl_->ordinal);
  size_t free = 0, total = 0;
  return cudaMemGetInfo(&free, &total) == cudaSuccess ? free : 0;
}

void Device::CopyIn(void* device, const void* host, size_t bytes) {
  // From pageable memory: the runtime has staged or copied all of it when this returns.
  impl_->Note(stream_, cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, impl_->stream));
}
void Device::CopyOut(void* host, const void* device, size_t bytes) {
  impl_->Note(stream_, cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, impl_->stream));
}
void Device::Copy(void* to, const void* from, size_t bytes) {
  impl_->Note(stream_, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, impl_->stream));
}
void Device::Zero(void* device, size_t bytes) {
  impl_->Note(stream_, cudaMemsetAsync(device, 0, bytes, impl_->stream));
}

absl::Status Device::Multiply(const Matmul& matmul) { return impl_->blas->Multiply(matmul); }

absl::StatusOr<double> Device::MedianSeconds(const std::function<absl::Status()>& launches,
                                             int warmups, int rounds) {
  // Once eagerly: the library chooses its algorithms and kernels are loaded, which no graph
  // records.
  if (absl::Status status = launches(); !status.ok()) return status;
  if (absl::Status status = Sync(); !status.ok()) return status;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  impl_->Note(stream_, cudaStreamBeginCapture(impl_->stream, cudaStreamCaptureModeThreadLocal));
  const absl::Status recorded = launches();
  impl_->Note(stream_, cudaStreamEndCapture(impl_->stream, &graph));
  impl_->Note(stream_, cudaGraphInstantiate(&replay, graph, 0));
  impl_->Note(stream_, cudaEventCreate(&begin));
  impl_->Note(stream_, cudaEventCreate(&end));
  std::vector<double> seconds;
  for (int round = -warmups; round < rounds && recorded.ok() && stream_.error == 0; ++round) {
    impl_->Note(stream_, cudaEventRecord(begin, impl_->stream));
    impl_->Note(stream_, cudaGraphLaunch(replay, impl_->stream));
    impl_->Note(stream_, cudaEventRecord(end, impl_->stream));
    impl_->Note(stream_, cudaEventSynchronize(end));
    float milliseconds = 0;
    impl_->Note(stream_, cudaEventElapsedTime(&milliseconds, begin, end));
    if (round >= 0) seconds.push_back(1e-3 * static_cast<double>(milliseconds));
  }
  if (end != nullptr) cudaEventDestroy(end);
  if (begin != nullptr) cudaEventDestroy(begin);
  if (replay != nullptr) cudaGraphExecDestroy(replay);
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (!recorded.ok()) return recorded;
  if (absl::Status status = Sync(); !status.ok()) return status;
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2];
}

absl::Status Device::Sync() {
  impl_->Note(stream_, cudaStreamSynchronize(impl_->stream));
  if (stream_.error == 0) return absl::OkStatus();
  const auto error = static_cast<cudaError_t>(stream_.error);
  return absl::InternalError("cuda:" + std::to_string(impl_->ordinal) + ": " + Text(error));
}

}  // namespace nibble
