// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/stringpiece.h>
#include <unicode/uchar.h>

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "engine/base/cat.h"
#include "engine/base/json.h"
#include "engine/tokenizer/utf8.h"

namespace nibble {
namespace {

constexpr char kSpaceMark[] = "\xE2\x96\x81";  // U+2581, how SentencePiece writes a space
constexpr int kMaxDepth = 8;
constexpr size_t kMaxContentBytes = 64;
constexpr size_t kMaxSteps = 64;

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

// `form` is null only where ICU's data are missing; text is then left as it is.
std::string NormalizeUnicode(std::string_view text, const icu::Normalizer2* form) {
  // ASCII is normalised in all four forms.
  if (form == nullptr || IsAscii(text)) return std::string(text);
  std::string out;
  icu::StringByteSink<std::string> sink(&out);
  UErrorCode error = U_ZERO_ERROR;
  form->normalizeUTF8(0, icu::StringPiece(text.data(), static_cast<int32_t>(text.size())), sink,
                      nullptr, error);
  return U_SUCCESS(error) ? out : std::string(text);
}

std::string_view StripSpace(std::string_view text, bool left, bool right) {
  while (left && !text.empty()) {
    const Utf8Char c = DecodeUtf8(text, 0);
    if (!u_isUWhiteSpace(static_cast<UChar32>(c.code))) break;
    text.remove_prefix(c.size);
  }
  while (right && !text.empty()) {
    size_t pos = text.size() - 1;
    while (pos > 0 && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80) --pos;
    if (!u_isUWhiteSpace(static_cast<UChar32>(DecodeUtf8(text, pos).code))) break;
    text.remove_suffix(text.size() - pos);
  }
  return text;
}

std::string CollapseSpaces(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == ' ' && (out.empty() || out.back() == ' ')) continue;
    out.push_back(c);
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

std::string Replace(std::string_view text, const SplitPattern& pattern,
                    const std::string& content) {
  std::vector<PatternSpan> spans;
  pattern.Find(text, &spans);
  std::string out;
  out.reserve(text.size());
  for (const PatternSpan& span : spans) {
    out.append(span.matched ? std::string_view(content)
                            : text.substr(span.begin, span.end - span.begin));
  }
  return out;
}

}  // namespace

absl::StatusOr<SplitPattern> PatternFromJson(const nlohmann::json& owner) {
  const nlohmann::json* pattern = FindMember(owner, "pattern");
  if (pattern != nullptr) {
    const nlohmann::json* literal = FindMember(*pattern, "String");
    if (literal != nullptr && literal->is_string()) {
      return SplitPattern::Literal(literal->get<std::string>());
    }
    const nlohmann::json* regex = FindMember(*pattern, "Regex");
    if (regex != nullptr && regex->is_string()) {
      return SplitPattern::Regex(regex->get<std::string>());
    }
  }
  return absl::InvalidArgumentError(
      "field 'pattern' must be an object with a string member 'String' or 'Regex'");
}

absl::StatusOr<Normalizer> Normalizer::FromJson(const nlohmann::json& description) {
  Normalizer normalizer;
  absl::Status status = AddSteps(description, 0, &normalizer.steps_);
  if (!status.ok()) return status;
  return normalizer;
}

absl::Status Normalizer::AddSteps(const nlohmann::json& description, int depth,
                                  std::vector<Step>* steps) {
  absl::StatusOr<std::string> type = StringMember(description, "type", "");
  if (!type.ok()) return type.status();
  if (depth > kMaxDepth || steps->size() >= kMaxSteps) {
    return absl::InvalidArgumentError(
        Cat("normalizer: more than ", kMaxDepth, " levels or ", kMaxSteps, " steps"));
  }
  if (*type == "Sequence") {
    const nlohmann::json* members = FindMember(description, "normalizers");
    if (members == nullptr || !members->is_array()) {
      return absl::InvalidArgumentError("normalizer Sequence: 'normalizers' must be an array");
    }
    for (const nlohmann::json& member : *members) {
      if (absl::Status s = AddSteps(member, depth + 1, steps); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  Step step;
  if (*type == "Prepend" || *type == "Replace") {
    const char* field = *type == "Prepend" ? "prepend" : "content";
    absl::StatusOr<std::string> content = StringMember(description, field, "");
    if (!content.ok()) return content.status();
    if (content->size() > kMaxContentBytes) {
      return absl::InvalidArgumentError(Cat("normalizer ", *type, ": '", field, "' has ",
                                            content->size(), " bytes, at most ", kMaxContentBytes,
                                            " are allowed"));
    }
    step.content = *std::move(content);
    step.kind = *type == "Prepend" ? Kind::kPrepend : Kind::kReplace;
    if (step.kind == Kind::kReplace) {
      absl::StatusOr<SplitPattern> pattern = PatternFromJson(description);
      if (!pattern.ok()) return pattern.status();
      step.pattern.push_back(*std::move(pattern));
    }
  } else if (*type == "Strip") {
    step.kind = Kind::kStrip;
    absl::StatusOr<bool> left = BoolMember(description, "strip_left", true);
    absl::StatusOr<bool> right = BoolMember(description, "strip_right", true);
    if (!left.ok()) return left.status();
    if (!right.ok()) return right.status();
    step.strip_left = *left;
    step.strip_right = *right;
  } else if (*type == "NFC") {
    step.kind = Kind::kNfc;
  } else if (*type == "NFD") {
    step.kind = Kind::kNfd;
  } else if (*type == "NFKC") {
    step.kind = Kind::kNfkc;
  } else if (*type == "NFKD") {
    step.kind = Kind::kNfkd;
  } else {
    return absl::InvalidArgumentError(
        Cat("normalizer type '", *type,
            "' is not supported; supported are Sequence, Prepend, Replace, Strip, NFC, "
            "NFD, NFKC, NFKD"));
  }
  steps->push_back(std::move(step));
  return absl::OkStatus();
}

Normalizer Normalizer::SentencePiece(bool add_dummy_prefix, bool remove_extra_whitespaces) {
  Normalizer normalizer;
  if (remove_extra_whitespaces) {
    Step step;
    step.kind = Kind::kCollapseSpaces;
    normalizer.steps_.push_back(std::move(step));
  }
  if (add_dummy_prefix) {
    Step step;
    step.kind = Kind::kPrepend;
    step.content = kSpaceMark;
    normalizer.steps_.push_back(std::move(step));
  }
  Step step;
  step.kind = Kind::kReplace;
  step.pattern.push_back(SplitPattern::Literal(" "));
  step.content = kSpaceMark;
  normalizer.steps_.push_back(std::move(step));
  return normalizer;
}

void Normalizer::PrependOnlyAtStart() {
  for (Step& step : steps_) step.only_at_start = true;
}

std::string Normalizer::Apply(std::string_view text, bool at_start) const {
  std::string current(text);
  UErrorCode error = U_ZERO_ERROR;
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::kPrepend:
        if (!current.empty() && (at_start || !step.only_at_start)) {
          current.insert(0, step.content);
        }
        break;
      case Kind::kReplace:
        current = Replace(current, step.pattern[0], step.content);
        break;
      case Kind::kStrip:
        current = std::string(StripSpace(current, step.strip_left, step.strip_right));
        break;
      case Kind::kCollapseSpaces:
        current = CollapseSpaces(current);
        break;
      case Kind::kNfc:
        current = NormalizeUnicode(current, icu::Normalizer2::getNFCInstance(error));
        break;
      case Kind::kNfd:
        current = NormalizeUnicode(current, icu::Normalizer2::getNFDInstance(error));
        break;
      case Kind::kNfkc:
        current = NormalizeUnicode(current, icu::Normalizer2::getNFKCInstance(error));
        break;
      case Kind::kNfkd:
        current = NormalizeUnicode(current, icu::Normalizer2::getNFKDInstance(error));
        break;
    }
  }
  return current;
}

}  // namespace nibble
