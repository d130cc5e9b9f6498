// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/template_token_reader.h"

#include <algorithm>

#include "engine/base/cat.h"

namespace nibble::jinja {

const Token& TokenReader::Peek(size_t ahead) const {
  return tokens_[std::min(position_ + ahead, tokens_.size() - 1)];
}

Token TokenReader::Next() {
  Token token = Peek();
  if (position_ + 1 < tokens_.size()) ++position_;
  return token;
}

bool TokenReader::IsOperator(std::string_view text) const {
  return Peek().kind == TokenKind::kOperator && Peek().text == text;
}

bool TokenReader::IsName(std::string_view text) const {
  return Peek().kind == TokenKind::kName && Peek().text == text;
}

bool TokenReader::TakeOperator(std::string_view text) {
  if (!IsOperator(text)) return false;
  Next();
  return true;
}

bool TokenReader::TakeName(std::string_view text) {
  if (!IsName(text)) return false;
  Next();
  return true;
}

void TokenReader::Fail(std::string_view problem) { FailAt(Peek().line, problem); }

void TokenReader::FailAt(int line, std::string_view problem) {
  if (status_.ok()) {
    status_ = absl::InvalidArgumentError(Cat("chat template line ", line, ": ", problem));
  }
  position_ = tokens_.size() - 1;
}

std::string TokenReader::Describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kText:
      return "text";
    case TokenKind::kVariableBegin:
      return "'{{'";
    case TokenKind::kVariableEnd:
      return "'}}'";
    case TokenKind::kBlockBegin:
      return "'{%'";
    case TokenKind::kBlockEnd:
      return "'%}'";
    case TokenKind::kEnd:
      return "the end of the template";
    default:
      return Cat("'", token.text.substr(0, 40), "'");
  }
}

void TokenReader::Expect(std::string_view op) {
  if (!TakeOperator(op)) Fail(Cat("expected '", op, "', found ", Describe(Peek())));
}

void TokenReader::ExpectBlockEnd() {
  if (Peek().kind == TokenKind::kBlockEnd) {
    Next();
  } else {
    Fail(Cat("expected '%}', found ", Describe(Peek())));
  }
}

std::string TokenReader::ExpectName() {
  if (Peek().kind != TokenKind::kName) {
    Fail(Cat("expected a name, found ", Describe(Peek())));
    return "";
  }
  return Next().text;
}

TokenReader::Nested::Nested(TokenReader* reader) : reader_(reader) {
  if (++reader_->depth_ > kMaxTemplateDepth) {
    reader_->Fail(Cat("nested more than ", kMaxTemplateDepth, " deep"));
  }
}

}  // namespace nibble::jinja
