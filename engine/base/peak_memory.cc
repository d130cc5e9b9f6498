// SPDX-License-Identifier: Apache-2.0
#include "engine/base/peak_memory.h"

#include <fstream>
#include <string>

namespace nibble {

int64_t PeakMemoryBytes() {
  std::ifstream status("/proc/self/status");
  std::string word;
  int64_t kibibytes = 0;
  while (status >> word) {
    if (word == "VmHWM:" && status >> kibibytes) return kibibytes * 1024;
  }
  return 0;
}

void ResetPeakMemory() { std::ofstream("/proc/self/clear_refs") << 5; }

}  // namespace nibble
