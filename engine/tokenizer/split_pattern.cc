// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "absl/status/status.h"
#include "engine/base/cat.h"

namespace nibble {
namespace {

constexpr size_t kMaxExpressionBytes = 8192;
constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kHeapLimitKiB = 64 * 1024;

// Unicode's White_Space, which is Oniguruma's \s. (PCRE2's own \s adds U+180E.) Written as ranges
// because PCRE2 tests these with a bitmap.
constexpr std::string_view kSpaceSet =
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
    "\\x{205f}\\x{3000}";
// Oniguruma's \w; PCRE2's lacks marks and connector punctuation.
constexpr std::string_view kWordSet = "\\p{L}\\p{M}\\p{Nd}\\p{Pc}";

absl::Status Unsupported(std::string_view expression, std::string_view construct) {
  return absl::InvalidArgumentError(
      Cat("regular expression \"", expression, "\" uses ", construct, ", which is not supported"));
}

// The escapes that mean the same in both dialects.
bool IsSharedEscape(char c) {
  constexpr std::string_view kShared = "dDpPrntfaeAzZbBx";
  return kShared.find(c) != std::string_view::npos ||
         !((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'));
}

bool IsSharedGroup(std::string_view rest) {
  for (std::string_view opener : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?i)"}) {
    if (rest.substr(0, opener.size()) == opener) return true;
  }
  return false;
}

absl::Status TranslateEscape(std::string_view expression, char c, bool in_set, std::string* out) {
  const bool negated = c == 'S' || c == 'W';
  if (c == 's' || c == 'S' || c == 'w' || c == 'W') {
    const std::string_view set = (c == 's' || c == 'S') ? kSpaceSet : kWordSet;
    if (!in_set) {
      out->append(Cat(negated ? "[^" : "[", set, "]"));
    } else if (!negated) {
      out->append(set);
    } else if (c == 'S') {
      out->append("\\P{White_Space}");
    } else {
      return Unsupported(expression, "\\W inside a set");
    }
    return absl::OkStatus();
  }
  if (!IsSharedEscape(c)) return Unsupported(expression, Cat("\\", std::string(1, c)));
  out->push_back('\\');
  out->push_back(c);
  return absl::OkStatus();
}

absl::StatusOr<std::string> Translate(std::string_view expression) {
  std::string out;
  bool in_set = false;
  for (size_t i = 0; i < expression.size(); ++i) {
    const char c = expression[i];
    if (c == '\\') {
      if (++i == expression.size()) return Unsupported(expression, "a lone backslash at its end");
      if (absl::Status s = TranslateEscape(expression, expression[i], in_set, &out); !s.ok()) {
        return s;
      }
      continue;
    }
    if (in_set) {
      if (c == '[') return Unsupported(expression, "a set within a set");
      if (c == '&' && expression.substr(i, 2) == "&&") {
        return Unsupported(expression, "set intersection (&&)");
      }
      in_set = c != ']';
      out.push_back(c);
      continue;
    }
    out.push_back(c);
    if (c == '[') {
      in_set = true;
      if (i + 1 < expression.size() && expression[i + 1] == '^') out.push_back(expression[++i]);
      if (i + 1 < expression.size() && expression[i + 1] == ']') {
        return Unsupported(expression, "an unescaped ] at the start of a set");
      }
    } else if (c == '(' && i + 1 < expression.size() && expression[i + 1] == '?' &&
               !IsSharedGroup(expression.substr(i))) {
      return Unsupported(expression, Cat("the group ", expression.substr(i, 4)));
    } else if (c == '(' && i + 1 < expression.size() && expression[i + 1] == '*') {
      return Unsupported(expression, "a (*VERB)");
    }
  }
  return out;
}

}  // namespace

struct SplitPattern::Compiled {
  pcre2_code* code = nullptr;
  pcre2_match_context* context = nullptr;

  Compiled() = default;
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;
  ~Compiled() {
    pcre2_match_context_free(context);
    pcre2_code_free(code);
  }
};

absl::StatusOr<SplitPattern> SplitPattern::Regex(std::string_view expression) {
  if (expression.empty() || expression.size() > kMaxExpressionBytes) {
    return absl::InvalidArgumentError(Cat("regular expression of ", expression.size(),
                                          " bytes, allowed are 1 to ", kMaxExpressionBytes));
  }
  absl::StatusOr<std::string> translated = Translate(expression);
  if (!translated.ok()) return translated.status();

  auto compiled = std::make_shared<Compiled>();
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  // Ruby's ^ and $ always work by line.
  compiled->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated->data()), translated->size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                    &error_offset, nullptr);
  if (compiled->code == nullptr) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(error, message, sizeof(message));
    return absl::InvalidArgumentError(
        Cat("regular expression \"", expression, "\": ", reinterpret_cast<char*>(message)));
  }
  // Without JIT support the interpreter gives the same answers.
  pcre2_jit_compile(compiled->code, PCRE2_JIT_COMPLETE);
  compiled->context = pcre2_match_context_create(nullptr);
  pcre2_set_match_limit(compiled->context, kMatchLimit);
  pcre2_set_heap_limit(compiled->context, kHeapLimitKiB);

  SplitPattern pattern;
  pattern.regex_ = std::move(compiled);
  return pattern;
}

SplitPattern SplitPattern::Literal(std::string literal) {
  SplitPattern pattern;
  pattern.literal_ = std::move(literal);
  return pattern;
}

void SplitPattern::Find(std::string_view text, std::vector<PatternSpan>* spans) const {
  spans->clear();
  size_t covered = 0;
  const auto add_match = [&](size_t begin, size_t end) {
    if (begin > covered) spans->push_back({covered, begin, false});
    if (end > begin) spans->push_back({begin, end, true});
    covered = end;
  };

  if (regex_ == nullptr) {
    if (!literal_.empty()) {
      for (size_t at = text.find(literal_); at != std::string_view::npos;
           at = text.find(literal_, at + literal_.size())) {
        add_match(at, at + literal_.size());
      }
    }
  } else {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> match(
        pcre2_match_data_create(1, nullptr), &pcre2_match_data_free);
    const PCRE2_SIZE* ovector = pcre2_get_ovector_pointer(match.get());
    size_t from = 0;
    while (from < text.size()) {
      const auto attempt = [&](uint32_t options) {
        return pcre2_match(regex_->code, subject, text.size(), from, PCRE2_NO_UTF_CHECK | options,
                           match.get(), regex_->context);
      };
      int rc = attempt(0);
      if (rc == PCRE2_ERROR_JIT_STACKLIMIT) rc = attempt(PCRE2_NO_JIT);
      if (rc < 0) break;
      add_match(ovector[0], ovector[1]);
      from = ovector[1];
      if (ovector[0] == ovector[1]) {
        // An empty match: go on behind the next character.
        ++from;
        while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xC0) == 0x80) {
          ++from;
        }
      }
    }
  }
  if (covered < text.size()) spans->push_back({covered, text.size(), false});
}

}  // namespace nibble
