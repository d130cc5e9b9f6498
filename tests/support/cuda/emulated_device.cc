// SPDX-License-Identifier: Apache-2.0
// kernels/cuda/device.h in host memory, beside the emulator of kernels. Launches are done at once;
// what is copied out arrives no sooner than it must, as it may on a GPU.
#include "tests/support/cuda/emulated_device.h"

#include <array>
#include <chrono>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <new>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/device.h"
#include "tests/support/cuda/simt_emulator.h"

namespace nibble {
namespace {

constexpr std::align_val_t kAlignment{256};

float LoadElement(const void* data, DType type, int64_t i) {
  switch (type) {
    case DType::kBF16:
      return BF16ToF32(static_cast<const uint16_t*>(data)[i]);
    case DType::kF8E4M3:
      return E4M3ToF32(static_cast<const uint8_t*>(data)[i]);
    default:
      return static_cast<float>(static_cast<const int8_t*>(data)[i]);
  }
}

double Sum(const Matmul& matmul, int64_t m, int64_t n) {
  const auto product = [&](int64_t k) {
    return static_cast<double>(LoadElement(matmul.a, matmul.in, m * matmul.lda + k)) *
           static_cast<double>(LoadElement(matmul.b, matmul.in, n * matmul.ldb + k));
  };
  double sum = 0;
  if (!testing::EmulatedDevice().order_by_rows || matmul.in == DType::kI8) {
    for (int64_t k = 0; k < matmul.k; ++k) sum += product(k);
    return sum;
  }
  const int64_t stride = matmul.m % 4 + 1;
  for (int64_t first = 0; first < stride; ++first) {
    float part = 0;
    for (int64_t k = first; k < matmul.k; k += stride) part += static_cast<float>(product(k));
    sum += static_cast<double>(BF16ToF32(F32ToBF16(part)));
  }
  return sum;
}

class EmulatedRecording : public Recording {
 public:
  testing::LaunchList launches;
};

// Runs it, or adds it to the recording that is being made.
void RunOrRecord(const std::function<void()>& launch) {
  if (testing::LaunchList* list = testing::RecordedLaunches(); list != nullptr) {
    list->push_back(launch);
  } else {
    launch();
  }
}

}  // namespace

struct Device::Impl {
  std::map<void*, size_t> memory;
  size_t used = 0;
  struct Arrival {
    uint64_t mark;  // the first that says that it is there
    void* host;
    std::vector<uint8_t> bytes;
  };
  std::deque<Arrival> arrivals;
  uint64_t marks = 0;
  std::array<std::chrono::steady_clock::time_point, kTimedMarks>
      times;  // of mark m: m % kTimedMarks

  void Deliver(uint64_t mark) {
    for (; !arrivals.empty() && arrivals.front().mark <= mark; arrivals.pop_front()) {
      const Arrival& arrival = arrivals.front();
      std::memcpy(arrival.host, arrival.bytes.data(), arrival.bytes.size());
    }
  }
};

testing::EmulatedDeviceOptions& testing::EmulatedDevice() {
  static EmulatedDeviceOptions options;
  return options;
}

Device::Device(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Device::~Device() {
  for (const auto& [memory, bytes] : impl_->memory) ::operator delete(memory, kAlignment);
}

absl::StatusOr<std::unique_ptr<Device>> Device::Open(int ordinal) {
  if (ordinal != 0) return absl::NotFoundError("the emulator has one device, 0");
  std::unique_ptr<Device> device(new Device(std::make_unique<Impl>()));
  const testing::EmulatedDeviceOptions& options = testing::EmulatedDevice();
  device->info_ = DeviceInfo{
      "emulator",      options.major,        0, options.multiprocessors, size_t{163} << 10,
      size_t{1} << 20, options.memory_bytes, ""};
  return device;
}

Stream& Device::stream() { return stream_; }

void* Device::Allocate(size_t bytes) {
  if (bytes > FreeBytes()) return nullptr;
  void* memory = ::operator new(bytes > 0 ? bytes : 1, kAlignment);
  std::memset(memory, 0, bytes);
  impl_->memory[memory] = bytes;
  impl_->used += bytes;
  return memory;
}

void Device::Free(void* memory) {
  if (memory == nullptr) return;
  const auto found = impl_->memory.find(memory);
  NIBBLE_CHECK(found != impl_->memory.end());
  impl_->used -= found->second;
  impl_->memory.erase(found);
  ::operator delete(memory, kAlignment);
}

size_t Device::FreeBytes() const { return info_.total_bytes - impl_->used; }

void Device::CopyIn(void* device, const void* host, size_t bytes) {
  NIBBLE_CHECK(testing::RecordedLaunches() == nullptr);
  if (bytes > 0) std::memcpy(device, host, bytes);
}
void Device::CopyOut(void* host, const void* device, size_t bytes) {
  NIBBLE_CHECK(testing::RecordedLaunches() == nullptr);
  if (bytes == 0) return;
  const auto* from = static_cast<const uint8_t*>(device);
  impl_->arrivals.push_back({impl_->marks + 1, host, {from, from + bytes}});
}
void Device::Copy(void* to, const void* from, size_t bytes) {
  RunOrRecord([=] {
    if (bytes > 0) std::memcpy(to, from, bytes);
  });
}
void Device::Zero(void* device, size_t bytes) {
  RunOrRecord([=] {
    if (bytes > 0) std::memset(device, 0, bytes);
  });
}

namespace {

void RunProduct(const Matmul& matmul) {
  const bool scaled = matmul.in == DType::kF8E4M3;
  for (int64_t m = 0; m < matmul.m; ++m) {
    for (int64_t n = 0; n < matmul.n; ++n) {
      double sum = Sum(matmul, m, n);
      if (scaled) {
        sum *= static_cast<double>(matmul.a_scales[m]) * static_cast<double>(matmul.b_scales[n]);
      }
      const int64_t at = m * matmul.ldd + n;
      if (matmul.out == DType::kF32) {
        float& d = static_cast<float*>(matmul.d)[at];
        d = static_cast<float>(matmul.accumulate ? static_cast<double>(d) + sum : sum);
      } else if (matmul.out == DType::kBF16) {
        static_cast<uint16_t*>(matmul.d)[at] = F32ToBF16(static_cast<float>(sum));
      } else {
        static_cast<int32_t*>(matmul.d)[at] = static_cast<int32_t>(sum);
      }
    }
  }
}

}  // namespace

absl::Status Device::Multiply(const Matmul& matmul) {
  if (matmul.in == DType::kF8E4M3 && !testing::EmulatedDevice().e4m3_products) {
    return absl::UnimplementedError("the emulator was told to multiply no e4m3");
  }
  RunOrRecord([matmul] { RunProduct(matmul); });
  return absl::OkStatus();
}

std::vector<std::string> Device::E4M3ScaleModes() {
  if (!testing::EmulatedDevice().e4m3_products) return {};
  return {"row"};
}

absl::StatusOr<double> Device::MedianSeconds(const std::function<absl::Status()>& launches, int,
                                             int) {
  const auto start = std::chrono::steady_clock::now();
  if (absl::Status status = launches(); !status.ok()) return status;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

absl::Status Device::Sync() {
  impl_->Deliver(std::numeric_limits<uint64_t>::max());
  return absl::OkStatus();
}

uint64_t Device::Mark() {
  const uint64_t mark = ++impl_->marks;
  impl_->times[mark % kTimedMarks] = std::chrono::steady_clock::now();
  return mark;
}
absl::Status Device::Wait(uint64_t mark) {
  impl_->Deliver(mark);
  return absl::OkStatus();
}
double Device::Seconds(uint64_t from, uint64_t to) {
  if (impl_->marks >= from + kTimedMarks) return 0;
  return std::chrono::duration<double>(impl_->times[to % kTimedMarks] -
                                       impl_->times[from % kTimedMarks])
      .count();
}

absl::StatusOr<std::unique_ptr<Recording>> Device::Record(
    const std::function<absl::Status()>& launches) {
  auto recording = std::make_unique<EmulatedRecording>();
  testing::RecordedLaunches() = &recording->launches;
  const absl::Status status = launches();
  testing::RecordedLaunches() = nullptr;
  if (!status.ok()) return status;
  return recording;
}

void Device::Replay(const Recording& recording) {
  for (const auto& launch : static_cast<const EmulatedRecording&>(recording).launches) launch();
}

}  // namespace nibble
