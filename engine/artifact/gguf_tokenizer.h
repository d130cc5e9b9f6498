// SPDX-License-Identifier: Apache-2.0
// The tokenizer of a GGUF file as the files of a Hugging Face directory.
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "engine/tokenizer/gguf_vocab.h"

namespace nibble {

// Name -> contents of the files from which Tokenizer::FromDirectory makes the tokenizer that
// Tokenizer::FromGguf makes of `vocab`:
// - model "llama": tokenizer.model (sentencepiece's ModelProto) and tokenizer_config.json,
// - model "gpt2": tokenizer.json and tokenizer_config.json.
// The errors of CheckGgufVocab.
absl::StatusOr<std::map<std::string, std::string>> TokenizerFiles(const GgufVocab& vocab);

}  // namespace nibble
