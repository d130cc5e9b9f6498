// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/artifact/checkpoint.h"
#include "engine/model/config.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble {

// A model directory, artifact or GGUF file, opened: weights mapped, nothing prepared.
struct OpenedModel {
  std::unique_ptr<Checkpoint> checkpoint;
  DecoderConfig config;
  std::shared_ptr<const Tokenizer> tokenizer;
};

// Errors name file and field.
absl::StatusOr<OpenedModel> OpenModel(const std::string& path);

}  // namespace nibble
