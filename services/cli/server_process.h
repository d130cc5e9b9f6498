// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/status/status.h"
#include "services/common/settings.h"

namespace nibble {

// Runs the server until SIGTERM or SIGINT, then drains it: health turns first, running requests get
// --grace seconds, a second signal ends it at once. Prints one line that begins with "ready" when
// it takes RPCs and every --load model serves. An error if it could not start, or if an engine
// failed in a way that only a restart mends.
absl::Status RunServer(const Settings& settings);

}  // namespace nibble
