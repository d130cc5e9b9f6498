// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/lifeline.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <thread>

namespace nibble {

void WatchLifeline(int fd, std::atomic<bool>& drain, std::chrono::milliseconds grace) {
  std::thread([fd, &drain, grace] {
    char byte;
    for (;;) {
      const ssize_t got = ::read(fd, &byte, 1);
      if (got == 0 || (got < 0 && errno != EINTR)) break;
    }
    drain = true;
    std::this_thread::sleep_for(grace);
    ::_exit(0);
  }).detach();
}

void BecomeBackgroundProcess() {
  constexpr int kNice = 10;
  static_cast<void>(::setpriority(PRIO_PROCESS, 0, kNice));
  std::ofstream("/proc/self/oom_score_adj") << 900;
}

}  // namespace nibble
