// SPDX-License-Identifier: Apache-2.0
// The size of the emulated GPU; applies to devices that are opened afterwards.
#pragma once

#include <cstddef>

namespace nibble::testing {

struct EmulatedDeviceOptions {
  int multiprocessors = 4;
  size_t memory_bytes = size_t{1} << 30;
};
EmulatedDeviceOptions& EmulatedDevice();

}  // namespace nibble::testing
