// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/utf8.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr char32_t kReplacement = 0xFFFD;

// What a lead byte promises: the length of the character and the range of its second byte.
struct Lead {
  size_t size;
  uint8_t second_low;
  uint8_t second_high;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// How many of the lead's bytes are there and well-formed, counting the lead itself.
size_t WellFormedBytes(std::string_view text, size_t pos, const Lead& lead) {
  size_t n = 1;
  while (n < lead.size && pos + n < text.size()) {
    const auto byte = static_cast<uint8_t>(text[pos + n]);
    const uint8_t low = n == 1 ? lead.second_low : 0x80;
    const uint8_t high = n == 1 ? lead.second_high : 0xBF;
    if (byte < low || byte > high) break;
    ++n;
  }
  return n;
}

}  // namespace

Utf8Char DecodeUtf8(std::string_view text, size_t pos) {
  const auto first = static_cast<uint8_t>(text[pos]);
  if (first < 0x80) return {first, 1, true};
  const Lead lead = LeadOf(first);
  if (lead.size == 0) return {kReplacement, 1, false};
  const size_t n = WellFormedBytes(text, pos, lead);
  if (n < lead.size) return {kReplacement, n, false};
  char32_t code = first & (0xFFu >> (lead.size + 1));
  for (size_t i = 1; i < lead.size; ++i) {
    code = (code << 6) | (static_cast<uint8_t>(text[pos + i]) & 0x3Fu);
  }
  return {code, lead.size, true};
}

void AppendUtf8(char32_t code, std::string* out) {
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (code >> 6)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  } else if (code < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (code >> 12)));
    out->push_back(static_cast<char>(0x80 | ((code >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | (code >> 18)));
    out->push_back(static_cast<char>(0x80 | ((code >> 12) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | ((code >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  }
}

bool IsValidUtf8(std::string_view text) {
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text, pos);
    if (!c.valid) return false;
    pos += c.size;
  }
  return true;
}

void AppendValidUtf8(std::string_view text, std::string* out) {
  size_t kept = 0;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text, pos);
    if (!c.valid) {
      out->append(text.substr(kept, pos - kept));
      AppendUtf8(kReplacement, out);
      kept = pos + c.size;
    }
    pos += c.size;
  }
  out->append(text.substr(kept));
}

size_t IncompleteUtf8Suffix(std::string_view text) {
  const size_t reach = std::min<size_t>(3, text.size());
  for (size_t back = 1; back <= reach; ++back) {
    const size_t pos = text.size() - back;
    const Lead lead = LeadOf(static_cast<uint8_t>(text[pos]));
    if (lead.size == 0) continue;
    const bool open = lead.size > back && WellFormedBytes(text, pos, lead) == back;
    return open ? back : 0;
  }
  return 0;
}

}  // namespace nibble
