// SPDX-License-Identifier: Apache-2.0
#include "engine/base/json.h"

#include <unordered_set>
#include <utility>

#include "engine/base/cat.h"
#include "engine/base/read_file.h"

namespace nibble {
namespace {

using nlohmann::json;

// Nesting costs memory out of proportion to the text, so it is counted before anything is built.
bool NestsTooDeep(std::string_view text) {
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
      if (++depth > kMaxJsonDepth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

absl::Status WrongType(const char* key, const char* wanted, const json& value) {
  return absl::InvalidArgumentError(
      Cat("field '", key, "' is ", ShownJson(value), ", must be ", wanted));
}

}  // namespace

absl::StatusOr<json> ParseJsonObject(std::string_view text, std::string_view label,
                                     RepeatedMembers repeated) {
  if (text.size() > static_cast<size_t>(kMaxJsonBytes)) {
    return absl::InvalidArgumentError(
        Cat(label, ": has ", text.size(), " bytes, at most ", kMaxJsonBytes, " are allowed"));
  }
  if (NestsTooDeep(text)) {
    return absl::InvalidArgumentError(
        Cat(label, ": JSON nests more than ", kMaxJsonDepth, " deep"));
  }
  std::unordered_set<std::string> names;
  std::string twice;
  json::parser_callback_t on_event = nullptr;
  if (repeated == RepeatedMembers::kRefused) {
    on_event = [&](int depth, json::parse_event_t event, json& parsed) {
      if (depth == 1 && event == json::parse_event_t::key) {
        const std::string& name = parsed.get_ref<const std::string&>();
        if (!names.insert(name).second) twice = name;
      }
      return true;
    };
  }
  json value = json::parse(text, on_event, /*allow_exceptions=*/false);
  if (value.is_discarded()) return absl::InvalidArgumentError(Cat(label, ": is no JSON"));
  if (!value.is_object()) {
    return absl::InvalidArgumentError(Cat(label, ": is no JSON object"));
  }
  if (!twice.empty()) {
    return absl::InvalidArgumentError(Cat(label, ": ", ShownJson(twice), " comes twice"));
  }
  return value;
}

absl::StatusOr<json> ReadJsonObject(const std::string& path, int64_t max_bytes) {
  absl::StatusOr<std::string> text = ReadSmallFile(path, max_bytes);
  if (!text.ok()) return text.status();
  return ParseJsonObject(*text, path);
}

const json* FindMember(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

absl::StatusOr<bool> BoolMember(const json& object, const char* key, bool fallback) {
  const json* value = FindMember(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) return WrongType(key, "true or false", *value);
  return value->get<bool>();
}

absl::StatusOr<std::string> StringMember(const json& object, const char* key,
                                         std::string_view fallback) {
  const json* value = FindMember(object, key);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) return WrongType(key, "a string", *value);
  return value->get<std::string>();
}

std::string ShownJson(const json& value) {
  constexpr size_t kMost = 100;
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kMost) text = text.substr(0, kMost) + "...";
  return text;
}

}  // namespace nibble
