// SPDX-License-Identifier: Apache-2.0
// A Hugging Face directory as a Checkpoint.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/artifact/checkpoint.h"

namespace nibble {

// `directory` holds config.json and either model.safetensors or model.safetensors.index.json with
// the shards that it names.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenHfCheckpoint(const std::string& directory);

// The weight files of such a directory, sorted: {"model.safetensors"} or the shards of the index.
// NotFound if it has neither; InvalidArgument if the index names anything but plain file names.
absl::StatusOr<std::vector<std::string>> HfWeightFiles(const std::string& directory);

}  // namespace nibble
