// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/watch_hub.h"

#include <utility>

namespace nibble {

int64_t WatchHub::Add(Poke poke) {
  const std::lock_guard lock(mutex_);
  pokes_.emplace(next_, std::move(poke));
  return next_++;
}

void WatchHub::Remove(int64_t id) {
  const std::lock_guard lock(mutex_);
  pokes_.erase(id);
}

void WatchHub::PokeAll() {
  const std::lock_guard lock(mutex_);
  for (const auto& [id, poke] : pokes_) poke();
}

}  // namespace nibble
