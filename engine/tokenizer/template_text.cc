// SPDX-License-Identifier: Apache-2.0
//
// The text functions that filters and methods of templates share.

#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>

#include "engine/tokenizer/template_context.h"
#include "engine/tokenizer/utf8.h"

namespace nibble::jinja {
namespace {

icu::UnicodeString ToIcu(std::string_view text) {
  return icu::UnicodeString::fromUTF8(
      icu::StringPiece(text.data(), static_cast<int32_t>(text.size())));
}

bool IsPythonSpace(char32_t c) {
  return u_isUWhiteSpace(static_cast<UChar32>(c)) || (c >= 0x1C && c <= 0x1F);
}

}  // namespace

std::string Upper(std::string_view text) {
  std::string out;
  return ToIcu(text).toUpper(icu::Locale::getRoot()).toUTF8String(out);
}

std::string Lower(std::string_view text) {
  std::string out;
  return ToIcu(text).toLower(icu::Locale::getRoot()).toUTF8String(out);
}

std::string Capitalize(std::string_view text) {
  if (text.empty()) return "";
  const size_t first = DecodeUtf8(text, 0).size;
  return Upper(text.substr(0, first)) + Lower(text.substr(first));
}

std::string_view Strip(std::string_view text, const std::string* chars, bool left, bool right) {
  const auto goes = [chars](std::string_view character, char32_t code) {
    return chars == nullptr ? IsPythonSpace(code) : chars->find(character) != std::string::npos;
  };
  while (left && !text.empty()) {
    const Utf8Char c = DecodeUtf8(text, 0);
    if (!goes(text.substr(0, c.size), c.code)) break;
    text.remove_prefix(c.size);
  }
  while (right && !text.empty()) {
    size_t pos = text.size() - 1;
    while (pos > 0 && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80) --pos;
    if (!goes(text.substr(pos), DecodeUtf8(text, pos).code)) break;
    text.remove_suffix(text.size() - pos);
  }
  return text;
}

std::vector<std::string_view> Characters(std::string_view text) {
  std::vector<std::string_view> characters;
  for (size_t pos = 0; pos < text.size();) {
    const size_t size = DecodeUtf8(text, pos).size;
    characters.push_back(text.substr(pos, size));
    pos += size;
  }
  return characters;
}

size_t CharacterCount(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

std::string ReplaceText(std::string_view text, std::string_view from, std::string_view to,
                        int64_t count) {
  std::string out;
  size_t done = 0;
  if (from.empty()) {
    // Before every character and at the end.
    for (const std::string_view c : Characters(text)) {
      if (count == 0) break;
      --count;
      out.append(to).append(c);
      done += c.size();
    }
    out.append(text.substr(done));
    return count == 0 ? out : out.append(to);
  }
  for (size_t at = text.find(from); at != std::string_view::npos && count != 0;
       at = text.find(from, done)) {
    out.append(text.substr(done, at - done)).append(to);
    done = at + from.size();
    --count;
  }
  return out.append(text.substr(done));
}

}  // namespace nibble::jinja
