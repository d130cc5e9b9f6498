// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble {

// A stretch of text and whether the pattern matched it.
struct PatternSpan {
  size_t begin;
  size_t end;
  bool matched;
};

// What a pre-tokenizer or normaliser looks for: a literal or a regular expression.
//
// Expressions are written for Oniguruma with Ruby's syntax, which is what tokenizer.json files are
// made for; they run on PCRE2 (UTF, UCP, JIT). Where the two differ the expression is translated
// (\s, \w) or refused by name (nested sets, set intersection, \h, named groups ...), never
// silently read in another sense. Immutable and thread-safe after construction.
class SplitPattern {
 public:
  static absl::StatusOr<SplitPattern> Regex(std::string_view expression);
  static SplitPattern Literal(std::string literal);

  // Cuts `text` (valid UTF-8) into consecutive non-empty spans that cover it. An expression that
  // exhausts its matching budget stops there: the rest of the text is one unmatched span.
  void Find(std::string_view text, std::vector<PatternSpan>* spans) const;

 private:
  struct Compiled;
  SplitPattern() = default;

  std::shared_ptr<const Compiled> regex_;  // null for a literal
  std::string literal_;
};

}  // namespace nibble
