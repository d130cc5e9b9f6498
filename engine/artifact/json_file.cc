// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/json_file.h"

#include <utility>

#include "engine/artifact/mapped_file.h"
#include "engine/base/cat.h"

namespace nibble {

absl::Status CheckJsonDepth(std::string_view text, std::string_view label) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxJsonDepth) {
        return absl::InvalidArgumentError(
            Cat(label, ": JSON nests more than ", kMaxJsonDepth, " deep"));
      }
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view label) {
  if (absl::Status status = CheckJsonDepth(text, label); !status.ok()) return status;
  nlohmann::json value = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) return absl::InvalidArgumentError(Cat(label, ": is no JSON"));
  if (!value.is_object()) {
    return absl::InvalidArgumentError(Cat(label, ": is no JSON object"));
  }
  return value;
}

absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path, int64_t max_bytes) {
  absl::StatusOr<std::string> text = ReadSmallFile(path, max_bytes);
  if (!text.ok()) return text.status();
  return ParseJsonObject(*text, path);
}

std::string ShownJson(const nlohmann::json& value) {
  constexpr size_t kMost = 100;
  std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  if (text.size() > kMost) text = text.substr(0, kMost) + "...";
  return text;
}

}  // namespace nibble
