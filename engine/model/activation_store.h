// SPDX-License-Identifier: Apache-2.0
// The live activations between two blocks: one row per token.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

// (rows, cols) f32, in memory or in an unnamed file. Not thread-safe.
class ActivationStore {
 public:
  // With `spill`, the rows live in a file of `directory` that is unlinked at once.
  // IsDiskFull if it is.
  static absl::StatusOr<std::unique_ptr<ActivationStore>> Make(int64_t rows, int64_t cols,
                                                               bool spill,
                                                               const std::string& directory);
  ~ActivationStore();
  ActivationStore(const ActivationStore&) = delete;
  ActivationStore& operator=(const ActivationStore&) = delete;

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  bool spilled() const { return file_ >= 0; }

  // Rows [first, first + count), which lie inside the store.
  absl::Status Read(int64_t first, int64_t count, float* to) const;
  absl::Status Write(int64_t first, int64_t count, const float* from);

 private:
  ActivationStore(int64_t rows, int64_t cols) : rows_(rows), cols_(cols) {}

  int64_t rows_;
  int64_t cols_;
  std::vector<float> memory_;
  int file_ = -1;
};

}  // namespace nibble
