// SPDX-License-Identifier: Apache-2.0
// Data that lies beside the project, not in it: models and text of others. A test that needs it
// skips where it is absent.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "tests/support/source_dir.h"

namespace nibble {

// NIBBLE_SHARED_DIR, or "shared" next to the source tree; "" if there is no such directory.
inline std::string SharedDataDirectory() {
  const char* named = std::getenv("NIBBLE_SHARED_DIR");
  const std::filesystem::path directory =
      named != nullptr ? std::filesystem::path(named) : SourceDir().parent_path() / "shared";
  std::error_code ignored;
  const std::filesystem::path data = directory / "data";
  return std::filesystem::is_directory(data, ignored) ? data.string() : std::string();
}

}  // namespace nibble
