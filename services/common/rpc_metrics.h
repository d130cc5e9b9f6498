// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/support/server_interceptor.h>

#include <memory>

#include "services/common/metrics.h"

namespace nibble {

// Counts and times every RPC of a listener; those of methods that it does not have together, as
// method "unknown" of service "unknown". `metrics` must outlive the listener.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeRpcMetrics(
    Metrics& metrics);

}  // namespace nibble
