// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace nibble {

// The most memory that was resident in this process at once, in bytes, mapped files included; since
// the last ResetPeakMemory(), or else since the program began. 0 where the kernel does not say.
// (VmHWM of /proc/self/status: getrusage's figure also counts the process that started this one.)
int64_t PeakMemoryBytes();

// What is resident now becomes the peak. A kernel that does not offer it leaves the peak as it is.
void ResetPeakMemory();

}  // namespace nibble
