// SPDX-License-Identifier: Apache-2.0
// Memory of the CPU backend: zeroed buffers, and an arena of huge pages for packed weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace nibble {

// Kernels may read (never use) this many bytes past the end of any array in a buffer.
inline constexpr size_t kReadSlack = 64;

// Anonymous zeroed pages, advised to be huge, released with the object.
class Pages {
 public:
  // ResourceExhausted if the machine has no `bytes` available.
  static absl::StatusOr<std::unique_ptr<Pages>> Map(size_t bytes);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  Pages(void* mapping, size_t mapped, uint8_t* data, size_t bytes)
      : mapping_(mapping), mapped_(mapped), data_(data), bytes_(bytes) {}
  void* mapping_;
  size_t mapped_;
  uint8_t* data_;
  size_t bytes_;
};

// A zeroed buffer, 64-byte aligned.
absl::StatusOr<std::unique_ptr<Buffer>> AllocateCpuBuffer(size_t bytes);

// Hands out slices of large mappings, so that many small weights share huge pages. A mapping is
// released when its last slice and the arena have gone. Thread-safe.
class WeightArena {
 public:
  // A zeroed slice, 128-byte aligned, followed by at least kReadSlack readable bytes.
  absl::StatusOr<std::shared_ptr<uint8_t>> Take(size_t bytes);

 private:
  std::mutex mutex_;
  std::shared_ptr<Pages> current_;
  size_t used_ = 0;
};

}  // namespace nibble
