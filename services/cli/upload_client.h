// SPDX-License-Identifier: Apache-2.0
// Local models and texts on their way to a server.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "nibble/v1/quantization.grpc.pb.h"
#include "services/cli/client.h"

namespace nibble {

struct UploadOptions {
  std::string id;      // of the model or set to be; "" = drawn by the server
  bool quiet = false;  // no progress
};

// Sends a Hugging Face directory or GGUF file, unless the server has the same files already; goes
// on with an upload that was broken off, now or by an earlier call. Returns the resource's name.
absl::StatusOr<std::string> UploadModel(const Client& client, const std::string& path,
                                        const UploadOptions& options);
// The same for one file of text.
absl::StatusOr<std::string> UploadText(const Client& client, const std::string& path,
                                       const UploadOptions& options);

}  // namespace nibble
