// SPDX-License-Identifier: Apache-2.0
// A model of a known shape with random weights: a real artifact, for measuring speed.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

struct SyntheticShape {
  std::string_view name;
  int hidden;
  int layers;
  int heads;
  int kv_heads;
  int intermediate;
  int vocabulary;
};
inline constexpr SyntheticShape kSyntheticShapes[] = {
    {"110m", 768, 12, 12, 12, 2048, 32000},
    {"1b", 2048, 16, 32, 8, 8192, 32000},
    {"8b", 4096, 32, 32, 8, 14336, 128256},  // Llama-3.1-8B
};

struct SyntheticSpec {
  const SyntheticShape* shape = nullptr;
  std::string scheme;            // of the blocks' linears
  std::string embedding_scheme;  // "" = int8-g128 if `scheme` is quantized, else `scheme`
  std::string head_scheme;       // the same
};

// Writes the artifact into `directory`, which must not exist. Every layer has its own bytes; scales
// are such that logits stay finite. The tokenizer is that of the 256 bytes. InvalidArgument lists
// the schemes for an unknown one.
absl::Status WriteSynthetic(const SyntheticSpec& spec, const std::string& directory);

}  // namespace nibble
