// SPDX-License-Identifier: Apache-2.0
// The one place where the engine's statuses become gRPC's, and back.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <chrono>
#include <optional>

#include "absl/status/status.h"

namespace nibble {

// Codes have the same numbers on both sides. What is no caller's business (Internal, DataLoss,
// Unknown) keeps its message: it names files and fields, never secrets.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

// ToGrpc, and the trailer "grpc-retry-pushback-ms" where a pause is suggested.
grpc::Status ToGrpc(const absl::Status& status, std::optional<std::chrono::milliseconds> retry,
                    grpc::ServerContextBase* context);

}  // namespace nibble
