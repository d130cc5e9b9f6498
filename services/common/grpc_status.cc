// SPDX-License-Identifier: Apache-2.0
#include "services/common/grpc_status.h"

#include <string>

namespace nibble {

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      std::string(status.message()));
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

grpc::Status ToGrpc(const absl::Status& status, std::optional<std::chrono::milliseconds> retry,
                    grpc::ServerContextBase* context) {
  if (!status.ok() && retry) {
    context->AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(retry->count()));
  }
  return ToGrpc(status);
}

}  // namespace nibble
