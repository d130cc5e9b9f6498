// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "services/common/metrics.h"

namespace nibble {

// Build, uptime, memory, processor time, threads and files of this process, read at each scrape
// until the handle dies.
[[nodiscard]] std::shared_ptr<void> ExportProcessMetrics(Metrics& metrics);

}  // namespace nibble
