// SPDX-License-Identifier: Apache-2.0
// The small models of tests/data/models, made by tests/engine/model/make_golden_models.py.
#pragma once

#include <filesystem>
#include <string>

#include "tests/support/source_dir.h"
#include "tests/support/temp_dir.h"

namespace nibble {

// The weights of each family lie there once, beside a config.json and the logits of each variant.
inline std::filesystem::path GoldenModels() { return SourceDir() / "tests/data/models"; }

// One variant as a Hugging Face directory.
class GoldenModelDirectory {
 public:
  GoldenModelDirectory(const std::string& family, const std::string& variant) {
    const std::filesystem::path source = GoldenModels() / family;
    std::filesystem::copy_file(source / "weights.safetensors", dir_.File("model.safetensors"));
    std::filesystem::copy_file(source / (variant + ".json"), dir_.File("config.json"));
  }
  const std::string& path() const { return dir_.path(); }

 private:
  TempDir dir_;
};

}  // namespace nibble
