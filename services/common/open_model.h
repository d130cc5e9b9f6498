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
  DecoderConfig config;  // its eos_ids are those of all the model's files
  std::shared_ptr<const Tokenizer> tokenizer;
};

// Errors name file and field.
absl::StatusOr<OpenedModel> OpenModel(const std::string& path);

// The scheme that stores most of the weights of the blocks' linears; "" without blocks.
std::string MainScheme(const Checkpoint& checkpoint);

// The KV format that an artifact's recipe chose; "bf16" for any other model. The errors of
// ReadManifest, where there is a manifest.
absl::StatusOr<std::string> KvFormatOf(const std::string& path);

}  // namespace nibble
