// SPDX-License-Identifier: Apache-2.0
// Device memory that frees itself; the device must outlive it.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"

namespace nibble {

class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(DeviceMemory&& other) noexcept
      : device_(other.device_),
        data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceMemory() {
    if (data_ != nullptr) device_->Free(data_);
  }

  // Zeroed. ResourceExhausted, saying how much is left.
  static absl::StatusOr<DeviceMemory> Allocate(Device& device, size_t bytes) {
    DeviceMemory memory;
    memory.device_ = &device;
    memory.data_ = device.Allocate(bytes);
    memory.bytes_ = bytes;
    if (memory.data_ != nullptr) return memory;
    return absl::ResourceExhaustedError("GPU memory: " + std::to_string(bytes) + " bytes wanted, " +
                                        std::to_string(device.FreeBytes()) + " left");
  }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace nibble
