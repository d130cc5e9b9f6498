// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/json_input.h"

#include "absl/status/status.h"
#include "engine/base/cat.h"

namespace nibble {
namespace {

constexpr size_t kMaxBytes = size_t{256} << 20;
constexpr int kMaxDepth = 64;

// Nesting costs memory out of proportion to the text, so it is counted before anything is built.
int Depth(std::string_view text) {
  int depth = 0;
  int deepest = 0;
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
      if (++depth > deepest) deepest = depth;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return deepest;
}

absl::Status WrongType(const char* key, const char* wanted, const nlohmann::json& value) {
  return absl::InvalidArgumentError(
      Cat("field '", key, "' is ", value.type_name(), ", expected ", wanted));
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseUntrustedJson(std::string_view text, std::string_view what) {
  if (text.size() > kMaxBytes) {
    return absl::InvalidArgumentError(
        Cat(what, ": ", text.size(), " bytes, at most ", kMaxBytes, " are read"));
  }
  if (const int depth = Depth(text); depth > kMaxDepth) {
    return absl::InvalidArgumentError(
        Cat(what, ": nested ", depth, " deep, at most ", kMaxDepth, " are read"));
  }
  nlohmann::json document = nlohmann::json::parse(text.begin(), text.end(), nullptr, false);
  if (document.is_discarded()) {
    return absl::InvalidArgumentError(Cat(what, ": not well-formed JSON"));
  }
  return document;
}

const nlohmann::json* FindMember(const nlohmann::json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

absl::StatusOr<bool> BoolMember(const nlohmann::json& object, const char* key, bool fallback) {
  const nlohmann::json* value = FindMember(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) return WrongType(key, "a boolean", *value);
  return value->get<bool>();
}

absl::StatusOr<std::string> StringMember(const nlohmann::json& object, const char* key,
                                         std::string_view fallback) {
  const nlohmann::json* value = FindMember(object, key);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) return WrongType(key, "a string", *value);
  return value->get<std::string>();
}

}  // namespace nibble
