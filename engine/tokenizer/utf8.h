// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

// UTF-8 as the Unicode standard (chapter 3, table 3-7) defines it: no surrogates, no overlong
// forms, nothing above U+10FFFF. Ill-formed input is cut into maximal subparts, each of which
// stands for one U+FFFD; that is also what Python's errors="replace" does.

struct Utf8Char {
  char32_t code;  // U+FFFD where valid is false
  size_t size;    // bytes consumed, at least 1
  bool valid;
};

// The character that starts at byte `pos`, which must be inside `text`.
Utf8Char DecodeUtf8(std::string_view text, size_t pos);

void AppendUtf8(char32_t code, std::string* out);

bool IsValidUtf8(std::string_view text);

// Appends `text` to `out` with every maximal ill-formed subpart replaced by U+FFFD.
void AppendValidUtf8(std::string_view text, std::string* out);

// How many bytes at the end of `text` begin a character that more bytes could complete (0 to 3).
size_t IncompleteUtf8Suffix(std::string_view text);

}  // namespace nibble
