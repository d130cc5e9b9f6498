// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/template_lexer.h"

#include <algorithm>

#include "absl/status/status.h"
#include "engine/base/cat.h"
#include "engine/tokenizer/text.h"
#include "engine/tokenizer/utf8.h"

namespace nibble::jinja {
namespace {

bool IsSpace(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}

std::string NormalizeLineBreaks(std::string_view source) {
  std::string out;
  AppendValidUtf8(source, &out);
  out = ReplaceAll(out, "\r\n", "\n");
  std::replace(out.begin(), out.end(), '\r', '\n');
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (pos_ < source_.size() && status_.ok()) LexTextAndTag();
    Add(TokenKind::kEnd, "");
    if (!status_.ok()) return status_;
    return std::move(tokens_);
  }

 private:
  void Fail(std::string_view problem) {
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(Cat("chat template line ", line_, ": ", problem));
    }
  }

  void Add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  void Advance(size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(pos_),
                                         source_.begin() + static_cast<ptrdiff_t>(end), '\n'));
    pos_ = end;
  }

  char At(size_t pos) const { return pos < source_.size() ? source_[pos] : '\0'; }
  bool StartsWith(size_t pos, std::string_view text) const {
    return source_.substr(std::min(pos, source_.size()), text.size()) == text;
  }

  size_t SkipSpace(size_t pos) const {
    while (pos < source_.size() && IsSpace(source_[pos])) ++pos;
    return pos;
  }

  // Where the next tag begins, or the end of the source.
  size_t FindTag(size_t from) const {
    for (size_t at = source_.find('{', from); at != std::string_view::npos;
         at = source_.find('{', at + 1)) {
      const char next = At(at + 1);
      if (next == '{' || next == '%' || next == '#') return at;
    }
    return source_.size();
  }

  void LexTextAndTag() {
    const size_t tag = FindTag(pos_);
    std::string_view text = source_.substr(pos_, tag - pos_);
    if (tag == source_.size()) {
      if (!text.empty()) Add(TokenKind::kText, std::string(text));
      Advance(tag);
      return;
    }
    const char kind = source_[tag + 1];
    const char sign = At(tag + 2);
    if (sign == '-') {
      while (!text.empty() && IsSpace(text.back())) text.remove_suffix(1);
    } else if (sign != '+' && kind != '{') {
      // lstrip_blocks: nothing but white space between the line's start and the tag goes away.
      const size_t break_at = text.rfind('\n');
      const size_t line = break_at == std::string_view::npos ? 0 : break_at + 1;
      if ((line > 0 || at_line_start_) &&
          std::all_of(text.begin() + static_cast<ptrdiff_t>(line), text.end(), IsSpace)) {
        text = text.substr(0, line);
      }
    }
    if (!text.empty()) Add(TokenKind::kText, std::string(text));
    Advance(tag);
    const size_t inside = tag + 2 + ((sign == '-' || sign == '+') ? 1 : 0);
    if (kind == '#') {
      SkipComment(inside);
    } else if (kind == '%' && IsKeywordBlock(inside, "raw")) {
      LexRaw(inside);
    } else {
      Add(kind == '{' ? TokenKind::kVariableBegin : TokenKind::kBlockBegin, "");
      Advance(inside);
      LexTag(kind == '{' ? "}}" : "%}");
    }
  }

  // Behind a tag's end: '-' swallows white space, otherwise trim_blocks one line break.
  void FinishTag(size_t end, char sign, bool trim) {
    size_t next = end;
    if (sign == '-') {
      next = SkipSpace(end);
    } else if (sign != '+' && trim && At(end) == '\n') {
      next = end + 1;
    }
    at_line_start_ = source_[next - 1] == '\n';
    Advance(next);
  }

  void SkipComment(size_t inside) {
    const size_t close = source_.find("#}", inside);
    if (close == std::string_view::npos) {
      Fail("a comment has no end (#})");
      return;
    }
    const char sign = close > inside ? source_[close - 1] : ' ';
    FinishTag(close + 2, sign == '-' || sign == '+' ? sign : ' ', true);
  }

  bool IsKeywordBlock(size_t inside, std::string_view keyword) const {
    const size_t name = SkipSpace(inside);
    if (!StartsWith(name, keyword)) return false;
    size_t after = SkipSpace(name + keyword.size());
    if (At(after) == '-' || At(after) == '+') ++after;
    return StartsWith(after, "%}");
  }

  void LexRaw(size_t inside) {
    const size_t open = source_.find("%}", inside);
    size_t begin = open + 2;
    if (source_[open - 1] == '-') begin = SkipSpace(begin);
    for (size_t at = source_.find("{%", begin); at != std::string_view::npos;
         at = source_.find("{%", at + 2)) {
      const char sign = At(at + 2);
      const size_t name = at + 2 + ((sign == '-' || sign == '+') ? 1 : 0);
      if (!IsKeywordBlock(name, "endraw")) continue;
      std::string_view text = source_.substr(begin, at - begin);
      if (sign == '-') {
        while (!text.empty() && IsSpace(text.back())) text.remove_suffix(1);
      }
      if (!text.empty()) Add(TokenKind::kText, std::string(text));
      const size_t close = source_.find("%}", name);
      const char end_sign = source_[close - 1];
      FinishTag(close + 2, end_sign == '-' || end_sign == '+' ? end_sign : ' ', true);
      return;
    }
    Fail("{% raw %} has no {% endraw %}");
  }

  void LexTag(std::string_view close) {
    std::string open_brackets;
    while (status_.ok()) {
      Advance(SkipSpace(pos_));
      if (pos_ >= source_.size()) {
        Fail(Cat("a tag has no end (", close, ")"));
        return;
      }
      const char c = source_[pos_];
      if (open_brackets.empty()) {
        const bool signed_end =
            (c == '-' || (c == '+' && close == "%}")) && StartsWith(pos_ + 1, close);
        if (signed_end || StartsWith(pos_, close)) {
          Add(close == "}}" ? TokenKind::kVariableEnd : TokenKind::kBlockEnd, "");
          const size_t end = pos_ + close.size() + (signed_end ? 1 : 0);
          FinishTag(end, signed_end ? c : ' ', close == "%}");
          return;
        }
      }
      if (IsNameStart(c)) {
        size_t end = pos_;
        while (end < source_.size() && (IsNameStart(source_[end]) || IsDigit(source_[end]))) ++end;
        Add(TokenKind::kName, std::string(source_.substr(pos_, end - pos_)));
        Advance(end);
      } else if (IsDigit(c)) {
        LexNumber();
      } else if (c == '"' || c == '\'') {
        LexString(c);
      } else {
        LexOperator(&open_brackets);
      }
    }
  }

  void LexNumber() {
    size_t end = pos_;
    std::string digits;
    TokenKind kind = TokenKind::kInteger;
    const auto take_digits = [&] {
      while (IsDigit(At(end)) || (At(end) == '_' && IsDigit(At(end + 1)))) {
        if (source_[end] != '_') digits.push_back(source_[end]);
        ++end;
      }
    };
    take_digits();
    // In x.0.5 the numbers are two members.
    const bool member = !tokens_.empty() && tokens_.back().kind == TokenKind::kOperator &&
                        tokens_.back().text == ".";
    if (!member && At(end) == '.' && IsDigit(At(end + 1))) {
      kind = TokenKind::kFloat;
      digits.push_back('.');
      ++end;
      take_digits();
    }
    const size_t exponent = end + 1 + ((At(end + 1) == '+' || At(end + 1) == '-') ? 1 : 0);
    if (!member && (At(end) == 'e' || At(end) == 'E') && IsDigit(At(exponent))) {
      kind = TokenKind::kFloat;
      digits.append(source_.substr(end, exponent - end));
      end = exponent;
      take_digits();
    }
    Add(kind, std::move(digits));
    Advance(end);
  }

  void LexString(char quote) {
    std::string text;
    size_t at = pos_ + 1;
    while (at < source_.size() && source_[at] != quote) {
      if (source_[at] != '\\') {
        text.push_back(source_[at++]);
        continue;
      }
      if (!LexEscape(&at, &text)) return;
    }
    if (at >= source_.size()) {
      Fail("a string has no end");
      return;
    }
    Add(TokenKind::kString, std::move(text));
    Advance(at + 1);
  }

  // Python's escapes. One it does not know stays as it is, backslash included.
  bool LexEscape(size_t* at, std::string* text) {
    const char c = At(*at + 1);
    static constexpr std::string_view kNames = "\\'\"abfnrtv";
    static constexpr std::string_view kMeanings = "\\'\"\a\b\f\n\r\t\v";
    if (const size_t known = kNames.find(c); c != '\0' && known != std::string_view::npos) {
      text->push_back(kMeanings[known]);
      *at += 2;
      return true;
    }
    if (c == '\n') {
      *at += 2;
      return true;
    }
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0 && !(c >= '0' && c <= '7')) {
      text->push_back('\\');
      ++*at;
      return true;
    }
    char32_t code = 0;
    size_t end = *at + (digits > 0 ? 2 : 1);
    if (digits == 0) {
      for (; end < *at + 4 && At(end) >= '0' && At(end) <= '7'; ++end) {
        code = code * 8 + static_cast<char32_t>(At(end) - '0');
      }
    } else {
      for (const size_t last = end + digits; end < last; ++end) {
        const char d = At(end);
        const int digit = IsDigit(d)               ? d - '0'
                          : (d >= 'a' && d <= 'f') ? d - 'a' + 10
                          : (d >= 'A' && d <= 'F') ? d - 'A' + 10
                                                   : -1;
        if (digit < 0) {
          Fail("a string has a \\x or \\u escape without its hexadecimal digits");
          return false;
        }
        code = code * 16 + static_cast<char32_t>(digit);
      }
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
      Fail("a string has an escape that is no character");
      return false;
    }
    AppendUtf8(code, text);
    *at = end;
    return true;
  }

  void LexOperator(std::string* open_brackets) {
    static constexpr std::string_view kTwo[] = {"//", "**", "==", "!=", ">=", "<="};
    static constexpr std::string_view kOne = "+-/*%~[](){}><=.:|,;";
    for (const std::string_view two : kTwo) {
      if (StartsWith(pos_, two)) {
        Add(TokenKind::kOperator, std::string(two));
        Advance(pos_ + 2);
        return;
      }
    }
    const char c = source_[pos_];
    if (kOne.find(c) == std::string_view::npos) {
      Fail(Cat("unexpected character '", std::string(1, c), "'"));
      return;
    }
    if (c == '(' || c == '[' || c == '{') {
      open_brackets->push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    } else if (c == ')' || c == ']' || c == '}') {
      if (open_brackets->empty() || open_brackets->back() != c) {
        Fail(Cat("'", std::string(1, c), "' closes nothing"));
        return;
      }
      open_brackets->pop_back();
    }
    Add(TokenKind::kOperator, std::string(1, c));
    Advance(pos_ + 1);
  }

  std::string_view source_;
  size_t pos_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  const std::string normalized = NormalizeLineBreaks(source);
  return Lexer(normalized).Run();
}

}  // namespace nibble::jinja
