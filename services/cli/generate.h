// SPDX-License-Identifier: Apache-2.0
// What `generate` and `chat` share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nibble/v1/generation.pb.h"
#include "services/cli/client.h"

namespace nibble {

// Flags that become a request.
struct GenerateFlags {
  std::string model;
  int32_t max_tokens = 0;
  float temperature = 1;
  int32_t top_k = 0;
  float top_p = 0;  // 0 = not given
  float min_p = 0;
  float repetition_penalty = 0;  // 0 = not given
  int64_t seed = -1;             // -1 = not given
  std::vector<std::string> stop;
  int32_t n = 1;
  bool ignore_eos = false;

  void AddTo(CLI::App& command);
  v1::GenerateRequest ToRequest() const;  // without an input
};

// Streams to stdout as it comes, and returns the whole text.
absl::StatusOr<std::string> StreamToTerminal(const Client& client,
                                             const v1::GenerateRequest& request);

}  // namespace nibble
