// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

namespace nibble {

// A worker process as the store knows it: "name@boot_id:pid:start_ticks". Boot id and start time
// make it unique: a process id alone may be used again.
std::string WorkerIdentity(std::string_view name, pid_t pid);

// Whether that process still runs on this machine. False for a zombie, for another boot of this
// machine, and for what is not a worker identity.
bool WorkerLives(std::string_view identity);

}  // namespace nibble
