// SPDX-License-Identifier: Apache-2.0
// A GGUF file as a Checkpoint.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/artifact/checkpoint.h"

namespace nibble {

// Plain formats are viewed in place; block formats, and q and k rows that the file keeps in another
// order, are written out on first use (block formats as f32).
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenGgufCheckpoint(const std::string& path);

}  // namespace nibble
