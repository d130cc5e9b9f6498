// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>

#include "tests/support/source_dir.h"
#include "tests/support/temp_dir.h"

namespace nibble::testing {

// The project's own small files.
inline std::filesystem::path DataPath(const std::string& name) {
  return SourceDir() / "tests/data/tokenizer" / name;
}

}  // namespace nibble::testing
