// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <mutex>

#include "services/quantization/job_store.h"

namespace nibble {

// Tells the open WatchJob streams when something happened. Workers are other processes, so the
// store is looked at: one small read for all watchers together. Thread-safe.
class WatchHub {
 public:
  using Poke = std::function<void()>;

  // Calls `poke` after every change of the store until the returned id is removed. `poke` must not
  // block.
  int64_t Add(Poke poke);
  // Afterwards `poke` is not running and will not be called.
  void Remove(int64_t id);
  // Pokes everybody; called by the housekeeper when the store has new events.
  void PokeAll();

 private:
  std::mutex mutex_;
  int64_t next_ = 1;
  std::map<int64_t, Poke> pokes_;
};

}  // namespace nibble
