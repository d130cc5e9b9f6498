// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/blas.h"
#include "kernels/cuda/product_choices.h"
#include "kernels/cuda/staging.h"

namespace nibble {
namespace {

std::string Text(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + " (" + cudaGetErrorString(error) + ")";
}

class CudaRecording : public Recording {
 public:
  explicit CudaRecording(cudaGraphExec_t graph) : graph_(graph) {}
  ~CudaRecording() override { cudaGraphExecDestroy(graph_); }
  cudaGraphExec_t graph() const { return graph_; }

 private:
  cudaGraphExec_t graph_;
};

// Page-locked memory that copies of one direction go through.
struct Staging {
  StagingHalves halves{Device::kStagedBytes};
  void* memory = nullptr;
  cudaEvent_t left[2] = {};  // recorded when a half is left

  cudaError_t Create() {
    cudaError_t error = cudaMallocHost(&memory, halves.bytes());
    for (cudaEvent_t& event : left) {
      if (error == cudaSuccess) error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    }
    return error;
  }
  void* At(const StagingHalves::Place& place) const {
    return static_cast<uint8_t*>(memory) + place.offset;
  }
  ~Staging() {
    for (cudaEvent_t event : left) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    if (memory != nullptr) cudaFreeHost(memory);
  }
};

}  // namespace

struct Device::Impl {
  int ordinal = 0;
  cudaStream_t stream = nullptr;
  std::unique_ptr<Blas> blas;

  Staging in, out;
  struct Arrival {  // staged, and still to be copied to where it is wanted
    int half;
    uint64_t mark;  // the first that says that it is there
    const void* staged;
    void* host;
    size_t bytes;
  };
  std::deque<Arrival> arrivals;
  uint64_t marks = 0;
  std::array<cudaEvent_t, kTimedMarks> events{};  // of mark m: m % kTimedMarks

  // Where the next bytes are staged; `turned` is called with a half before it is used again.
  template <typename Turned>
  StagingHalves::Place Stage(Staging& staging, size_t bytes, Stream& launches, Turned&& turned) {
    const StagingHalves::Place place = staging.halves.Take(bytes);
    if (place.turned) {
      Note(launches, cudaEventRecord(staging.left[1 - place.half], stream));
      Note(launches, cudaEventSynchronize(staging.left[place.half]));
      turned(place.half);
    }
    return place;
  }
  template <typename Which>
  void Deliver(Which&& which) {
    while (!arrivals.empty() && which(arrivals.front())) {
      const Arrival& arrival = arrivals.front();
      std::memcpy(arrival.host, arrival.staged, arrival.bytes);
      arrivals.pop_front();
    }
  }
  absl::Status StatusOf(const Stream& launches) const {
    if (launches.error == 0) return absl::OkStatus();
    return absl::InternalError("cuda:" + std::to_string(ordinal) + ": " +
                               Text(static_cast<cudaError_t>(launches.error)));
  }

  // Notes the first error of the stream.
  void Note(Stream& launches, cudaError_t error) const {
    if (error != cudaSuccess && launches.error == 0) launches.error = error;
  }
};

Device::Device(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Device::~Device() {
  if (impl_->stream == nullptr) return;
  cudaStreamSynchronize(impl_->stream);
  for (cudaEvent_t event : impl_->events) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  cudaStreamDestroy(impl_->stream);
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
  if (error == cudaSuccess) error = impl.in.Create();
  if (error == cudaSuccess) error = impl.out.Create();
  for (cudaEvent_t& event : impl.events) {
    if (error == cudaSuccess) error = cudaEventCreate(&event);
  }
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
  device->stream_.programmatic = properties.major >= 9;
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
  if (bytes == 0) return;
  // From pageable memory the runtime has staged or copied all of it when this returns, but may wait
  // for the stream.
  if (bytes <= kStagedBytes) {
    const StagingHalves::Place place = impl_->Stage(impl_->in, bytes, stream_, [](int) {});
    host = std::memcpy(impl_->in.At(place), host, bytes);
  }
  impl_->Note(stream_, cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, impl_->stream));
}
void Device::CopyOut(void* host, const void* device, size_t bytes) {
  if (bytes == 0) return;
  if (bytes <= kStagedBytes) {
    const StagingHalves::Place place = impl_->Stage(impl_->out, bytes, stream_, [this](int half) {
      impl_->Deliver([half](const Impl::Arrival& arrival) { return arrival.half == half; });
    });
    void* staged = impl_->out.At(place);
    impl_->arrivals.push_back({place.half, impl_->marks + 1, staged, host, bytes});
    host = staged;
  }
  impl_->Note(stream_, cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, impl_->stream));
}
void Device::Copy(void* to, const void* from, size_t bytes) {
  impl_->Note(stream_, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, impl_->stream));
}
void Device::Zero(void* device, size_t bytes) {
  impl_->Note(stream_, cudaMemsetAsync(device, 0, bytes, impl_->stream));
}

absl::Status Device::Multiply(const Matmul& matmul) { return impl_->blas->Multiply(matmul); }

std::vector<std::string> Device::E4M3ScaleModes() { return impl_->blas->E4M3ScaleModes(); }

absl::StatusOr<double> Device::MedianSeconds(const std::function<absl::Status()>& launches,
                                             int warmups, int rounds) {
  // Once eagerly: the library chooses its algorithms and kernels are loaded, which no graph
  // records.
  if (absl::Status status = launches(); !status.ok()) return status;
  if (absl::Status status = Sync(); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Recording>> recording = Record(launches);
  if (!recording.ok()) return recording.status();
  std::vector<double> seconds;
  for (int round = -warmups; round < rounds; ++round) {
    const uint64_t begin = Mark();
    Replay(**recording);
    const uint64_t end = Mark();
    if (absl::Status status = Wait(end); !status.ok()) return status;
    if (round >= 0) seconds.push_back(Seconds(begin, end));
  }
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2];
}

absl::Status Device::Sync() {
  impl_->Note(stream_, cudaStreamSynchronize(impl_->stream));
  impl_->Deliver([](const Impl::Arrival&) { return true; });
  return impl_->StatusOf(stream_);
}

uint64_t Device::Mark() {
  const uint64_t mark = ++impl_->marks;
  impl_->Note(stream_, cudaEventRecord(impl_->events[mark % kTimedMarks], impl_->stream));
  return mark;
}

absl::Status Device::Wait(uint64_t mark) {
  // If the event is that of a later mark by now, this waits for more than it must.
  impl_->Note(stream_, cudaEventSynchronize(impl_->events[mark % kTimedMarks]));
  impl_->Deliver([mark](const Impl::Arrival& arrival) { return arrival.mark <= mark; });
  return impl_->StatusOf(stream_);
}

double Device::Seconds(uint64_t from, uint64_t to) {
  if (impl_->marks >= from + kTimedMarks) return 0;
  float milliseconds = 0;
  impl_->Note(stream_, cudaEventElapsedTime(&milliseconds, impl_->events[from % kTimedMarks],
                                            impl_->events[to % kTimedMarks]));
  return 1e-3 * static_cast<double>(milliseconds);
}

absl::StatusOr<std::unique_ptr<Recording>> Device::Record(
    const std::function<absl::Status()>& launches) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  impl_->Note(stream_, cudaStreamBeginCapture(impl_->stream, cudaStreamCaptureModeThreadLocal));
  const absl::Status recorded = launches();
  impl_->Note(stream_, cudaStreamEndCapture(impl_->stream, &graph));
  if (recorded.ok() && stream_.error == 0) {
    impl_->Note(stream_, cudaGraphInstantiate(&replay, graph, 0));
  }
  if (graph != nullptr) impl_->Note(stream_, cudaGraphDestroy(graph));
  if (!recorded.ok()) return recorded;
  if (absl::Status status = impl_->StatusOf(stream_); !status.ok()) return status;
  return std::make_unique<CudaRecording>(replay);
}

void Device::Replay(const Recording& recording) {
  impl_->Note(stream_,
              cudaGraphLaunch(static_cast<const CudaRecording&>(recording).graph(), impl_->stream));
}

}  // namespace nibble
