// SPDX-License-Identifier: Apache-2.0
// Where the tree under test lies: the only place that knows, so that objects of two trees are the
// same.
#pragma once

#include <filesystem>

namespace nibble {

/// The absolute path of the source tree that this program was built from.
const std::filesystem::path& SourceDir();

}  // namespace nibble
