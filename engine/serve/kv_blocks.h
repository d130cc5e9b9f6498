// SPDX-License-Identifier: Apache-2.0
// Who holds which block of the KV pool. Counts only: the memory and its layout belong to the
// backend. Not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

class KvBlocks {
 public:
  // total >= 1 blocks, numbered from 0.
  explicit KvBlocks(int32_t total);

  int32_t total() const { return static_cast<int32_t>(refs_.size()); }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }
  int32_t used() const { return total() - free(); }
  int32_t refs(int32_t block) const { return refs_[static_cast<size_t>(block)]; }

  // Appends `count` blocks with one reference each to `blocks`; false and no change if there are
  // fewer.
  bool Take(int32_t count, std::vector<int32_t>* blocks);
  // Adds a reference to each of `shared` and appends them to `blocks`.
  void Share(std::span<const int32_t> shared, std::vector<int32_t>* blocks);
  // Gives up one reference to each and empties the list.
  void Release(std::vector<int32_t>* blocks);

 private:
  std::vector<int32_t> refs_;  // (total)
  std::vector<int32_t> free_;  // the last is taken first
};

}  // namespace nibble
