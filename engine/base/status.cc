// SPDX-License-Identifier: Apache-2.0
#include "engine/base/status.h"

#include "engine/base/cat.h"

namespace nibble {

absl::Status Within(std::string_view where, const absl::Status& status) {
  return absl::Status(status.code(), Cat(where, ": ", status.message()));
}

}  // namespace nibble
