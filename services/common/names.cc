// SPDX-License-Identifier: Apache-2.0
#include "services/common/names.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "engine/base/cat.h"
#include "services/common/text.h"

namespace nibble {

absl::Status CheckIdentifier(std::string_view field, std::string_view identifier) {
  const auto allowed = [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
  };
  if (!identifier.empty() && identifier.size() <= kMaxIdentifier &&
      absl::ascii_isalnum(static_cast<unsigned char>(identifier[0])) &&
      std::all_of(identifier.begin(), identifier.end(), allowed)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(Cat(
      field, " is \"", absl::Utf8SafeCEscape(AbslView(identifier.substr(0, 2 * kMaxIdentifier))),
      "\"; it must be 1..64 characters of a-z, A-Z, 0-9, '.', '_', '-', the first a letter or "
      "digit"));
}

absl::StatusOr<std::string> ParseName(std::string_view field, std::string_view name,
                                      std::string_view collection, bool bare) {
  std::string_view identifier = name;
  if (name.starts_with(collection) && name.substr(collection.size()).starts_with('/')) {
    identifier.remove_prefix(collection.size() + 1);
  } else if (!bare) {
    return absl::InvalidArgumentError(
        Cat(field, " is \"", absl::Utf8SafeCEscape(AbslView(name.substr(0, 2 * kMaxIdentifier))),
            "\"; it must be ", collection, "/<identifier>"));
  }
  if (absl::Status status = CheckIdentifier(field, identifier); !status.ok()) return status;
  return std::string(identifier);
}

}  // namespace nibble
