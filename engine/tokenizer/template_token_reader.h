// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/tokenizer/template_lexer.h"

namespace nibble::jinja {

// How deep statements nest, and expressions.
inline constexpr int kMaxTemplateDepth = 100;

// The tokens of a template, read from front to back by a recursive descent. The first error is kept
// and the position jumps to the end, so that every loop over ok() stops.
class TokenReader {
 public:
  explicit TokenReader(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}
  TokenReader(const TokenReader&) = delete;
  TokenReader& operator=(const TokenReader&) = delete;

  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }

  // The last token (kEnd) where there are no more.
  const Token& Peek(size_t ahead = 0) const;
  Token Next();
  bool IsOperator(std::string_view text) const;
  bool IsName(std::string_view text) const;
  // Whether it was there, and if so, behind it.
  bool TakeOperator(std::string_view text);
  bool TakeName(std::string_view text);
  // An error where it is not there.
  void Expect(std::string_view op);
  void ExpectBlockEnd();
  std::string ExpectName();

  void Fail(std::string_view problem);
  void FailAt(int line, std::string_view problem);
  // A token as errors show it.
  static std::string Describe(const Token& token);

  // Counts how deep statements and expressions nest while in scope; too deep is an error.
  class Nested {
   public:
    explicit Nested(TokenReader* reader);
    ~Nested() { --reader_->depth_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    TokenReader* const reader_;
  };

 private:
  std::vector<Token> tokens_;
  size_t position_ = 0;
  int depth_ = 0;
  absl::Status status_;
};

}  // namespace nibble::jinja
