// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/checkpoint.h"

#include "engine/artifact/hf_checkpoint.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  return OpenHfCheckpoint(path);
}

}  // namespace nibble
