// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace nibble::testing {

inline std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream.good()) << path;
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// The project's own small files.
inline std::filesystem::path DataPath(const std::string& name) {
  return std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/data/tokenizer" / name;
}

// Material that is not part of the project; tests that need it skip where it is missing.
inline std::filesystem::path SharedDir() {
  const char* dir = std::getenv("NIBBLE_SHARED_DIR");
  return dir != nullptr ? std::filesystem::path(dir)
                        : std::filesystem::path(NIBBLE_SOURCE_DIR) / "../shared";
}

}  // namespace nibble::testing
