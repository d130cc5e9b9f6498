// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace nibble {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kArenaMapping = size_t{64} << 20;
// Allocations from this size on are compared with the memory that the machine has left: Linux
// grants larger mappings than it can back.
constexpr size_t kCheckedBytes = size_t{64} << 20;

constexpr size_t RoundUp(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// MemAvailable in bytes, or the largest size if the kernel does not say.
size_t AvailableMemory() {
  std::ifstream info("/proc/meminfo");
  std::string line;
  while (std::getline(info, line)) {
    unsigned long long kib = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %llu kB", &kib) == 1) {
      return static_cast<size_t>(kib) * 1024;
    }
  }
  return ~size_t{0};
}

class CpuBuffer : public Buffer {
 public:
  CpuBuffer(std::unique_ptr<Pages> pages, size_t bytes)
      : Buffer(pages->data(), bytes), pages_(std::move(pages)) {}

 private:
  std::unique_ptr<Pages> pages_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Pages>> Pages::Map(size_t bytes) {
  const auto exhausted = [bytes](size_t available) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cpu memory: ", bytes, " bytes wanted, ", available, " available"));
  };
  if (bytes >= kCheckedBytes) {
    const size_t available = AvailableMemory();
    if (bytes > available) return exhausted(available);
  }
  const bool huge = bytes >= kHugePage;
  const size_t mapped = RoundUp(bytes, 4096) + (huge ? kHugePage : 0);
  void* mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return exhausted(AvailableMemory());
  auto address = reinterpret_cast<uintptr_t>(mapping);
  if (huge) {
    address = RoundUp(address, kHugePage);
    madvise(reinterpret_cast<void*>(address), RoundUp(bytes, 4096), MADV_HUGEPAGE);
  }
  return std::unique_ptr<Pages>(
      new Pages(mapping, mapped, reinterpret_cast<uint8_t*>(address), bytes));
}

Pages::~Pages() { munmap(mapping_, mapped_); }

absl::StatusOr<std::unique_ptr<Buffer>> AllocateCpuBuffer(size_t bytes) {
  if (bytes > ~size_t{0} / 2) {
    return absl::ResourceExhaustedError(absl::StrCat("cpu memory: ", bytes, " bytes wanted"));
  }
  auto pages = Pages::Map(bytes + kReadSlack);
  if (!pages.ok()) return pages.status();
  return std::make_unique<CpuBuffer>(*std::move(pages), bytes);
}

absl::StatusOr<std::shared_ptr<uint8_t>> WeightArena::Take(size_t bytes) {
  const size_t wanted = RoundUp(bytes + kReadSlack, 128);
  std::lock_guard<std::mutex> lock(mutex_);
  if (current_ == nullptr || current_->bytes() - used_ < wanted) {
    const bool own = wanted > kArenaMapping / 2;
    auto pages = Pages::Map(own ? wanted : kArenaMapping);
    if (!pages.ok()) return pages.status();
    std::shared_ptr<Pages> fresh = *std::move(pages);
    if (own) return std::shared_ptr<uint8_t>(fresh, fresh->data());  // current_ stays open.
    current_ = std::move(fresh);
    used_ = 0;
  }
  uint8_t* slice = current_->data() + used_;
  used_ += wanted;
  return std::shared_ptr<uint8_t>(current_, slice);
}

}  // namespace nibble
