// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/tiers.h"

namespace nibble {

// Measures with all threads of the pool: the best of many short passes each, well below a second in
// all on an idle machine.
Ceilings MeasureCpuCeilings(ThreadPool& pool, const CpuTier& tier);

}  // namespace nibble
