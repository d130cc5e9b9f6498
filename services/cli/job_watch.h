// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "nibble/v1/quantization.grpc.pb.h"
#include "services/cli/client.h"

namespace nibble {

enum class WatchOutput { kProgress, kJsonLines, kNothing };

// Follows a job to its end and returns it. Goes on after a broken connection or a restart of the
// server. kProgress: a bar and notable events on stderr; kJsonLines: each event on stdout.
absl::StatusOr<v1::Job> WatchJobToEnd(const Client& client, const std::string& name,
                                      WatchOutput output);

// Prints how a job ended, for people, and returns the exit code that says it.
int PrintJobEnd(const Client& client, const v1::Job& job);
// The exit code alone.
int JobExitCode(const v1::Job& job);

}  // namespace nibble
