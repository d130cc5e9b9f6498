// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>

namespace nibble {

// In a worker process: watches descriptor `fd` on a detached thread. At its EOF (the service ended,
// however it did) `drain` is set; after `grace` the process exits.
void WatchLifeline(int fd, std::atomic<bool>& drain, std::chrono::milliseconds grace);

// Makes this process give way: a lower CPU priority than the service's, first choice of the kernel
// when memory runs out. What is not permitted is left as it is.
void BecomeBackgroundProcess();

}  // namespace nibble
