// SPDX-License-Identifier: Apache-2.0
#include "engine/base/status.h"

#include "absl/strings/cord.h"
#include "engine/base/cat.h"

namespace nibble {

absl::Status Within(std::string_view where, const absl::Status& status) {
  absl::Status within(status.code(), Cat(where, ": ", status.message()));
  status.ForEachPayload([&within](absl::string_view type, const absl::Cord& payload) {
    within.SetPayload(type, payload);
  });
  return within;
}

}  // namespace nibble
