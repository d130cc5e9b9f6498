// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10, a counter-based random generator: Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3" (SC 2011). A number is a function of its key and counter; no state
// is carried, so results do not depend on who draws first.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/dtype.h"

namespace nibble {

struct Philox4 {
  uint32_t word[4];
};

NIBBLE_HD inline Philox4 Philox4x32(Philox4 counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = Philox4{{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                       static_cast<uint32_t>(product1),
                       static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                       static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

}  // namespace nibble
