// SPDX-License-Identifier: Apache-2.0
// Arrays in device memory for the tests of kernels. The tests touch them through Device only, so
// that they run on the emulator and on a GPU alike.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_weight.h"
#include "kernels/ops.h"
#include "tests/kernels/random_weight.h"

namespace nibble::testing {

inline Device& TestDevice() {
  static const std::unique_ptr<Device> device = Device::Open(0).value();
  return *device;
}

template <typename T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values) : OnDevice(values.size()) {
    TestDevice().CopyIn(data_, values.data(), values.size() * sizeof(T));
  }
  // Every byte 0xff: a NaN in every float format.
  static OnDevice Poisoned(size_t count) {
    OnDevice array(count);
    const std::vector<uint8_t> poison(count * sizeof(T), 0xff);
    TestDevice().CopyIn(array.data_, poison.data(), poison.size());
    return array;
  }
  OnDevice(OnDevice&& other) noexcept : data_(other.data_), count_(other.count_) {
    other.data_ = nullptr;
  }
  ~OnDevice() {
    if (data_ != nullptr) TestDevice().Free(data_);
  }
  T* data() const { return data_; }
  size_t size() const { return count_; }
  // Waits for everything launched so far.
  std::vector<T> Read() const {
    std::vector<T> values(count_);
    TestDevice().CopyOut(values.data(), data_, count_ * sizeof(T));
    const absl::Status status = TestDevice().Sync();
    EXPECT_TRUE(status.ok()) << status.message();
    return values;
  }

 private:
  explicit OnDevice(size_t count)
      : data_(static_cast<T*>(TestDevice().Allocate(count * sizeof(T)))), count_(count) {
    NIBBLE_CHECK(data_ != nullptr);
  }
  T* data_;
  size_t count_;
};

// A stored weight, copied to the device.
class WeightOnDevice {
 public:
  explicit WeightOnDevice(const WeightView& view) {
    weight_.scheme = *view.scheme;
    weight_.rows = view.rows;
    weight_.cols = view.cols;
    WeightView device = view;
    for (const StoredTensor& tensor : StoredTensors(view)) {
      const void* host = view.Get(tensor.part);
      if (host == nullptr) continue;
      const auto* bytes = static_cast<const uint8_t*>(host);
      arrays_.emplace_back(std::vector<uint8_t>(bytes, bytes + tensor.bytes()));
      device.Set(tensor.part, arrays_.back().data());
    }
    weight_.codes = device.codes;
    weight_.scales = device.scales;
    weight_.zeros = device.zeros;
    weight_.nested = device.nested;
    weight_.outliers = device.outliers;
    weight_.outlier_weights = device.outlier_weights;
    weight_.outlier_features = device.outlier_features;
  }
  const DeviceWeight& weight() const { return weight_; }

 private:
  DeviceWeight weight_;
  std::vector<OnDevice<uint8_t>> arrays_;
};

// bf16 or f32 values as bytes on the device, and back.
inline std::vector<uint16_t> ToBF16(const std::vector<float>& values) {
  std::vector<uint16_t> halves;
  for (const float value : values) halves.push_back(F32ToBF16(value));
  return halves;
}
inline std::vector<float> FromBF16(const std::vector<uint16_t>& halves) {
  std::vector<float> values;
  for (const uint16_t half : halves) values.push_back(BF16ToF32(half));
  return values;
}

// An ActSet with these formats, poisoned.
class ActsOnDevice {
 public:
  ActsOnDevice(std::span<const ActFormat> formats, int64_t rows, int64_t cols) {
    for (const ActFormat& format : formats) {
      ActView view;
      view.format = format;
      view.cols = cols;
      const auto groups = static_cast<size_t>(rows * format.GroupsPerRow(cols));
      data_.push_back(
          OnDevice<uint8_t>::Poisoned(static_cast<size_t>(rows * cols) * BytesOf(format.dtype)));
      view.data = data_.back().data();
      scales_.push_back(OnDevice<float>::Poisoned(groups));
      sums_.push_back(OnDevice<int32_t>::Poisoned(groups));
      if (groups > 0) view.scales = scales_.back().data();
      if (format.dtype == DType::kI8) view.sums = sums_.back().data();
      outliers_.push_back(OnDevice<uint16_t>::Poisoned(
          static_cast<size_t>(rows * OutlierStride(format.outliers.count))));
      if (format.outliers.count > 0) view.outliers = outliers_.back().data();
      set_.views[static_cast<size_t>(set_.count++)] = view;
    }
  }
  const ActSet& set() const { return set_; }
  std::vector<uint8_t> Data(size_t view) const { return data_[view].Read(); }
  std::vector<float> Scales(size_t view) const { return scales_[view].Read(); }
  std::vector<int32_t> Sums(size_t view) const { return sums_[view].Read(); }
  std::vector<uint16_t> Outliers(size_t view) const { return outliers_[view].Read(); }

 private:
  ActSet set_;
  std::vector<OnDevice<uint8_t>> data_;
  std::vector<OnDevice<float>> scales_;
  std::vector<OnDevice<int32_t>> sums_;
  std::vector<OnDevice<uint16_t>> outliers_;
};

template <typename T>
std::vector<T> As(const std::vector<uint8_t>& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

}  // namespace nibble::testing
