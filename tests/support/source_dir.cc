// SPDX-License-Identifier: Apache-2.0
#include "tests/support/source_dir.h"

namespace nibble {

const std::filesystem::path& SourceDir() {
  static const std::filesystem::path directory(NIBBLE_SOURCE_DIR);
  return directory;
}

}  // namespace nibble
