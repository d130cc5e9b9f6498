// SPDX-License-Identifier: Apache-2.0
// What a GGUF file says about its model, in the words of Hugging Face: config.json, tensor names,
// tokenizer. Sources: ggml-org/ggml, docs/gguf.md; llama.cpp's converter
// (gguf-py/gguf/constants.py, convert_hf_to_gguf.py) for the names and the order of q and k rows.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/artifact/gguf.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble {

// The Hugging Face name of a tensor ("blk.3.attn_q.weight" ->
// "model.layers.3.self_attn.q_proj.weight"), nothing for unknown ones.
std::optional<std::string> HfTensorName(std::string_view gguf_name);

// Heads whose rows a file of this architecture keeps in interleaved rotary order: those of q_proj
// and k_proj for "llama", else 0. The rows of a head are then (pair, half), in Hugging Face's order
// (half, pair).
int64_t PermutedHeads(const GgufFile& file, std::string_view hf_name);

// config.json of the model. Unimplemented naming the architecture or key that is not supported.
absl::StatusOr<nlohmann::json> GgufConfig(const GgufFile& file);

// The embedded tokenizer. InvalidArgument naming the key that is missing or contradicts another.
absl::StatusOr<GgufVocab> GgufVocabulary(const GgufFile& file);

// The embedded tokenizer of the file at `path`.
absl::StatusOr<GgufVocab> ReadGgufVocab(const std::string& path);

}  // namespace nibble
