// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "services/common/settings.h"
#include "tests/support/source_dir.h"

namespace nibble {

// The model that the project ships: small, real, quick to load.
inline std::string DemoModelPath() { return (SourceDir() / "deploy/demo-model/model").string(); }

inline Settings TestSettings() {
  Settings settings;
  settings.data_dir = "unused";
  settings.threads = 2;
  settings.max_running = 8;
  return settings;
}

}  // namespace nibble
