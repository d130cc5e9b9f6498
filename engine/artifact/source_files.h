// SPDX-License-Identifier: Apache-2.0
// Which files make up a model, and what identifies them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble {

// Files beside the weights that decide what a model says: tokenizer, chat template, generation
// defaults. An artifact carries those that its source has, byte for byte.
inline constexpr std::string_view kCarriedFiles[] = {"added_tokens.json",
                                                     "chat_template.jinja",
                                                     "chat_template.json",
                                                     "generation_config.json",
                                                     "merges.txt",
                                                     "special_tokens_map.json",
                                                     "tokenizer.json",
                                                     "tokenizer.model",
                                                     "tokenizer_config.json",
                                                     "vocab.json"};

inline constexpr int64_t kMaxCarriedBytes = int64_t{256} << 20;  // of each

// A model's files: names relative to `directory`, sorted.
struct SourceFiles {
  std::string directory;
  std::vector<std::string> names;
  bool gguf = false;  // then there is one
};

// `path` is a Hugging Face directory, a GGUF file, or a directory without config.json that holds
// one GGUF file. NotFound or InvalidArgument naming what is missing.
absl::StatusOr<SourceFiles> ListSourceFiles(const std::string& path);

// The identity of a source. For a GGUF file its sha256. For a directory the sha256 over a line
// "SHA256  NAME\n" (as sha256sum prints it) for config.json, the weight files and the carried files
// that are there, sorted by name in byte order. `keep_going`, if given, is asked now and then; its
// error ends the reading.
absl::StatusOr<std::string> SourceDigest(const std::string& path,
                                         const std::function<absl::Status()>& keep_going = nullptr);

}  // namespace nibble
