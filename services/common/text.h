// SPDX-License-Identifier: Apache-2.0
// Debian's Abseil has a string_view of its own; these go between it and std::string_view.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace nibble {

inline absl::string_view AbslView(std::string_view text) { return {text.data(), text.size()}; }
inline std::string_view StdView(absl::string_view text) { return {text.data(), text.size()}; }

namespace text_internal {
template <typename T>
decltype(auto) Piece(const T& value) {
  if constexpr (std::is_same_v<T, std::string_view>) {
    return AbslView(value);
  } else {
    return (value);
  }
}
}  // namespace text_internal

// absl::StrCat that takes std::string_view too.
template <typename... T>
std::string Concat(const T&... pieces) {
  return absl::StrCat(text_internal::Piece(pieces)...);
}

}  // namespace nibble
