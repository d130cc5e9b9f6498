// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/tier.h"

namespace nibble {

// Measures with all threads of the pool: the best of several short passes each, about a second in
// all on an idle machine.
Ceilings MeasureCpuCeilings(ThreadPool& pool, const KernelTable& kernels);

}  // namespace nibble
