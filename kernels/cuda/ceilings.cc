// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/ceilings.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <vector>

#include "kernels/cuda/device_memory.h"

namespace nibble {
namespace {

constexpr size_t kCopyBytes = size_t{1} << 30;
constexpr int64_t kSide = 8192;
constexpr int kRounds = 5;
constexpr int kLaunches = 10;  // in a round

// Random numbers in [-1, 1), as bf16; as int8 and e4m3 their bytes are random too.
absl::StatusOr<DeviceMemory> RandomMemory(Device& device, size_t bytes) {
  absl::StatusOr<DeviceMemory> memory = DeviceMemory::Allocate(device, bytes);
  if (!memory.ok()) return memory.status();
  std::mt19937 random(1);
  std::vector<uint16_t> values(std::min<size_t>(bytes, size_t{8} << 20) / 2);
  for (uint16_t& value : values) {
    value = F32ToBF16(static_cast<float>(random()) * 0x1p-31f - 1.0f);
  }
  const size_t chunk = values.size() * 2;
  for (size_t at = 0; at < bytes; at += chunk) {
    device.CopyIn(memory->as<uint8_t>() + at, values.data(), std::min(chunk, bytes - at));
  }
  return memory;
}

// The shortest of the rounds, per launch; 0 if something failed.
template <typename Launches>
double BestSeconds(Device& device, Launches&& launch) {
  double best = 0;
  for (int round = -1; round < kRounds; ++round) {  // the first warms up
    if (!device.Sync().ok()) return 0;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kLaunches; ++i) {
      if (!launch().ok()) return 0;
    }
    if (!device.Sync().ok()) return 0;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (round >= 0 && (best == 0 || seconds.count() < best)) best = seconds.count();
  }
  return best / kLaunches;
}

double ProductRate(Device& device, DType in, DType out) {
  const auto elements = static_cast<size_t>(kSide * kSide);
  absl::StatusOr<DeviceMemory> a = RandomMemory(device, elements * BytesOf(in));
  absl::StatusOr<DeviceMemory> b = RandomMemory(device, elements * BytesOf(in));
  absl::StatusOr<DeviceMemory> d = DeviceMemory::Allocate(device, elements * BytesOf(out));
  if (!a.ok() || !b.ok() || !d.ok()) return 0;
  Matmul matmul;
  matmul.m = matmul.n = matmul.k = matmul.lda = matmul.ldb = matmul.ldd = kSide;
  matmul.a = a->data();
  matmul.b = b->data();
  matmul.d = d->data();
  matmul.in = in;
  matmul.out = out;
  absl::StatusOr<DeviceMemory> scales = DeviceMemory::Allocate(device, kSide * sizeof(float));
  if (!scales.ok()) return 0;
  if (in == DType::kF8E4M3) matmul.a_scales = matmul.b_scales = scales->as<float>();
  const double seconds = BestSeconds(device, [&] { return device.Multiply(matmul); });
  return seconds > 0 ? 2e-9 * static_cast<double>(kSide * kSide * kSide) / seconds : 0;
}

double CopyRate(Device& device) {
  absl::StatusOr<DeviceMemory> from = RandomMemory(device, kCopyBytes);
  absl::StatusOr<DeviceMemory> to = DeviceMemory::Allocate(device, kCopyBytes);
  if (!from.ok() || !to.ok()) return 0;
  const double seconds = BestSeconds(device, [&] {
    device.Copy(to->data(), from->data(), kCopyBytes);
    return absl::OkStatus();
  });
  return seconds > 0 ? 2e-9 * static_cast<double>(kCopyBytes) / seconds : 0;
}

}  // namespace

Ceilings MeasureCudaCeilings(Device& device) {
  Ceilings ceilings;
  ceilings.read_gb_per_s = CopyRate(device);
  ceilings.bf16_gflops = ProductRate(device, DType::kBF16, DType::kBF16);
  ceilings.int8_gops = ProductRate(device, DType::kI8, DType::kI32);
  return ceilings;
}

double MeasureE4M3Ceiling(Device& device) {
  return ProductRate(device, DType::kF8E4M3, DType::kBF16);
}

}  // namespace nibble
