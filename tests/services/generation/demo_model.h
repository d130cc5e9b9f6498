// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "services/common/settings.h"

namespace nibble {

// The model that the project ships: small, real, quick to load.
inline std::string DemoModelPath() { return NIBBLE_SOURCE_DIR "/deploy/demo-model/model"; }

inline Settings TestSettings() {
  Settings settings;
  settings.data_dir = "unused";
  settings.threads = 2;
  settings.max_running = 8;
  return settings;
}

}  // namespace nibble
