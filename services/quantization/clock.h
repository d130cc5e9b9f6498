// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace nibble {

// The store's clock: wall time, shared by every process of the machine (a database server's store
// would use that server's). It may jump; what hangs on it may cost a retry, never correctness.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const { return absl::Now(); }
};

}  // namespace nibble
