// SPDX-License-Identifier: Apache-2.0
#include "engine/model/activation_store.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "engine/base/cat.h"
#include "engine/base/posix_status.h"
#include "kernels/check.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<ActivationStore>> ActivationStore::Make(
    int64_t rows, int64_t cols, bool spill, const std::string& directory) {
  std::unique_ptr<ActivationStore> store(new ActivationStore(rows, cols));
  if (!spill) {
    store->memory_.resize(static_cast<size_t>(rows * cols));
    return store;
  }
  std::string path = Cat(directory, "/activations.XXXXXX");
  store->file_ = mkostemp(path.data(), O_CLOEXEC);
  if (store->file_ < 0) return ErrnoStatus(errno, "create", path);
  unlink(path.c_str());
  const int64_t bytes = rows * cols * static_cast<int64_t>(sizeof(float));
  if (const int error = posix_fallocate(store->file_, 0, bytes); error != 0) {
    return ErrnoStatus(error, Cat("reserve ", bytes, " bytes in"), path);
  }
  return store;
}

ActivationStore::~ActivationStore() {
  if (file_ >= 0) close(file_);
}

absl::Status ActivationStore::Read(int64_t first, int64_t count, float* to) const {
  NIBBLE_CHECK(first >= 0 && count >= 0 && first + count <= rows_);
  if (file_ < 0) {
    const float* from = memory_.data() + first * cols_;
    std::copy(from, from + count * cols_, to);
    return absl::OkStatus();
  }
  auto* at = reinterpret_cast<char*>(to);
  auto left = static_cast<size_t>(count * cols_) * sizeof(float);
  auto offset = static_cast<off_t>(first * cols_) * static_cast<off_t>(sizeof(float));
  while (left > 0) {
    const ssize_t got = pread(file_, at, left, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return ErrnoStatus(got < 0 ? errno : EIO, "read", "spilled activations");
    at += got;
    offset += got;
    left -= static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

absl::Status ActivationStore::Write(int64_t first, int64_t count, const float* from) {
  NIBBLE_CHECK(first >= 0 && count >= 0 && first + count <= rows_);
  if (file_ < 0) {
    std::copy(from, from + count * cols_, memory_.data() + first * cols_);
    return absl::OkStatus();
  }
  const auto* at = reinterpret_cast<const char*>(from);
  auto left = static_cast<size_t>(count * cols_) * sizeof(float);
  auto offset = static_cast<off_t>(first * cols_) * static_cast<off_t>(sizeof(float));
  while (left > 0) {
    const ssize_t put = pwrite(file_, at, left, offset);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return ErrnoStatus(put < 0 ? errno : EIO, "write", "spilled activations");
    at += put;
    offset += put;
    left -= static_cast<size_t>(put);
  }
  return absl::OkStatus();
}

}  // namespace nibble
