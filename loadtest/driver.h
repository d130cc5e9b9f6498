// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "loadtest/options.h"

namespace nibble::load {

struct Result {
  std::string error;      // "" if the run took place
  nlohmann::json report;  // Report::ToJson
  bool any_success = false;
};

// Sends the load and waits for every answer.
//
// Closed loop (rate 0): `clients` requests are always under way; a request's clock starts when its
// client is free. Open loop: requests are due at Poisson times, whether or not earlier ones have
// been answered; a request's clock starts when it was due, so that a server that stalls cannot hide
// it (no coordinated omission).
Result Drive(const Options& options);

}  // namespace nibble::load
