// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <google/protobuf/message.h>

#include <nlohmann/json.hpp>

namespace nibble {

// A message as JSON, for scripts: field names as in the .proto files, enums by name, times in RFC
// 3339, 64-bit integers as numbers, optional fields that are unset left out.
nlohmann::ordered_json ToJson(const google::protobuf::Message& message);

// Prints it to stdout, with a line feed; on one line if `compact`.
void PrintJson(const nlohmann::ordered_json& json, bool compact = false);

}  // namespace nibble
