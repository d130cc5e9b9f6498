// SPDX-License-Identifier: Apache-2.0
#include "engine/serve/kv_blocks.h"

#include "kernels/check.h"

namespace nibble {

KvBlocks::KvBlocks(int32_t total) {
  NIBBLE_CHECK(total >= 1);
  refs_.assign(static_cast<size_t>(total), 0);
  free_.reserve(static_cast<size_t>(total));
  for (int32_t block = total - 1; block >= 0; --block) free_.push_back(block);
}

bool KvBlocks::Take(int32_t count, std::vector<int32_t>* blocks) {
  if (count > free()) return false;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t block = free_.back();
    free_.pop_back();
    refs_[static_cast<size_t>(block)] = 1;
    blocks->push_back(block);
  }
  return true;
}

void KvBlocks::Share(std::span<const int32_t> shared, std::vector<int32_t>* blocks) {
  for (const int32_t block : shared) {
    NIBBLE_CHECK(refs(block) >= 1);
    ++refs_[static_cast<size_t>(block)];
    blocks->push_back(block);
  }
}

void KvBlocks::Release(std::vector<int32_t>* blocks) {
  for (size_t i = blocks->size(); i-- > 0;) {
    const int32_t block = (*blocks)[i];
    NIBBLE_CHECK(refs(block) >= 1);
    if (--refs_[static_cast<size_t>(block)] == 0) free_.push_back(block);
  }
  blocks->clear();
}

}  // namespace nibble
