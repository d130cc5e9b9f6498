// SPDX-License-Identifier: Apache-2.0
// Cat(a, b, ...): texts and integers as one string. (Debian's absl::StrCat does not take
// std::string_view.)
#pragma once

#include <concepts>
#include <string>
#include <string_view>

#include "absl/strings/string_view.h"

namespace nibble {
namespace cat_internal {

inline void Append(std::string& out, std::string_view text) { out += text; }
inline void Append(std::string& out, const std::string& text) { out += text; }
inline void Append(std::string& out, const char* text) { out += text; }
inline void Append(std::string& out, absl::string_view text) {
  out.append(text.data(), text.size());
}
template <std::integral Number>
void Append(std::string& out, Number number) {
  out += std::to_string(number);
}

}  // namespace cat_internal

template <typename... Parts>
std::string Cat(const Parts&... parts) {
  std::string out;
  (cat_internal::Append(out, parts), ...);
  return out;
}

}  // namespace nibble
