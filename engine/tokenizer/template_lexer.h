// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble::jinja {

enum class TokenKind {
  kText,           // outside of tags, after white-space control
  kVariableBegin,  // {{
  kVariableEnd,
  kBlockBegin,  // {%
  kBlockEnd,
  kName,
  kString,   // without quotes, escapes resolved
  kInteger,  // digits
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind;
  std::string text;
  int line;
};

// Cuts a template into tokens as Jinja's lexer does with trim_blocks and lstrip_blocks on:
// comments vanish, {% raw %} becomes text, line breaks become \n, one at the very end is dropped.
// The last token is kEnd.
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

}  // namespace nibble::jinja
