// SPDX-License-Identifier: Apache-2.0
// What prometheus-cpp's exposer collects from: kept apart so that few files see its headers.
#pragma once

#include <prometheus/collectable.h>

#include <memory>

#include "services/common/metrics.h"

namespace nibble {

// Everything in `metrics`, each family once.
std::shared_ptr<prometheus::Collectable> MetricsCollectable(const Metrics& metrics);

}  // namespace nibble
