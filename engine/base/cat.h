// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace nibble {
namespace cat_internal {

inline void Append(std::string& out, std::string_view text) { out += text; }
inline void Append(std::string& out, const std::string& text) { out += text; }
inline void Append(std::string& out, const char* text) { out += text; }
inline void Append(std::string& out, absl::string_view text) {
  out.append(text.data(), text.size());
}

// Neither a character nor a truth value says how it wants to be printed.
template <typename Number>
requires(std::is_arithmetic_v<Number> && !std::is_same_v<Number, bool> &&
         !std::is_same_v<Number, char>) void Append(std::string& out, Number number) {
  absl::StrAppend(&out, number);
}

}  // namespace cat_internal

// Texts and numbers, one after the other, as one string: absl::StrCat, which as Debian packages
// it takes no std::string_view. Integers in decimal; floating point as printf's %g, six significant
// digits, so a number that must read back as the same bits is formatted by the caller.
template <typename... Pieces>
std::string Cat(const Pieces&... pieces) {
  std::string out;
  (cat_internal::Append(out, pieces), ...);
  return out;
}

}  // namespace nibble
