// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "engine/base/cat.h"
#include "engine/base/json.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/text.h"

namespace nibble {

// Facts about the vocabularies, as their tokenizer.json files state them.
const char kGpt2Split[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char kLlama3Split[] = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
                            R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const char kQwen2Split[] = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
                           R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

constexpr int kMaxDepth = 8;
constexpr size_t kMaxSteps = 32;

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::FromJson(const nlohmann::json& description) {
  PreTokenizer pre_tokenizer;
  absl::Status status = pre_tokenizer.AddSteps(description, 0);
  if (!status.ok()) return status;
  return pre_tokenizer;
}

absl::StatusOr<PreTokenizer> PreTokenizer::ByteLevelSplit(std::string_view expression) {
  PreTokenizer pre_tokenizer;
  absl::Status status = pre_tokenizer.AddExpression(expression, Behavior::kIsolated);
  if (!status.ok()) return status;
  pre_tokenizer.byte_level_ = true;
  return pre_tokenizer;
}

absl::Status PreTokenizer::AddSteps(const nlohmann::json& description, int depth) {
  absl::StatusOr<std::string> type = StringMember(description, "type", "");
  if (!type.ok()) return type.status();
  if (depth > kMaxDepth || steps_.size() >= kMaxSteps) {
    return absl::InvalidArgumentError(
        Cat("pre_tokenizer: more than ", kMaxDepth, " levels or ", kMaxSteps, " steps"));
  }
  if (*type == "Sequence") {
    const nlohmann::json* members = FindMember(description, "pretokenizers");
    if (members == nullptr || !members->is_array()) {
      return absl::InvalidArgumentError("pre_tokenizer Sequence: 'pretokenizers' must be an array");
    }
    for (const nlohmann::json& member : *members) {
      if (absl::Status s = AddSteps(member, depth + 1); !s.ok()) return s;
    }
    return absl::OkStatus();
  }
  if (byte_level_) {
    return absl::InvalidArgumentError(
        Cat("pre_tokenizer '", *type,
            "' comes after ByteLevel; only ByteLevel as the last one is supported"));
  }
  if (*type == "Split") return AddSplit(description);
  if (*type == "ByteLevel") return AddByteLevel(description);
  if (*type == "Metaspace") return AddMetaspace(description);
  if (*type == "Digits") {
    absl::StatusOr<bool> individual = BoolMember(description, "individual_digits", false);
    if (!individual.ok()) return individual.status();
    return AddExpression(*individual ? R"(\p{N})" : R"(\p{N}+)", Behavior::kIsolated);
  }
  if (*type == "Punctuation") {
    absl::StatusOr<Behavior> behavior = BehaviorFromJson(description, "Isolated");
    if (!behavior.ok()) return behavior.status();
    return AddExpression(R"([!-/:-@\[-`{-~\p{P}])", *behavior);
  }
  return absl::InvalidArgumentError(
      Cat("pre_tokenizer type '", *type,
          "' is not supported; supported are Sequence, Split, ByteLevel, Metaspace, "
          "Digits, Punctuation"));
}

absl::Status PreTokenizer::AddExpression(std::string_view expression, Behavior behavior) {
  absl::StatusOr<SplitPattern> pattern = SplitPattern::Regex(expression);
  if (!pattern.ok()) return pattern.status();
  Step step;
  step.kind = Kind::kSplit;
  step.pattern.push_back(*std::move(pattern));
  step.behavior = behavior;
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::StatusOr<PreTokenizer::Behavior> PreTokenizer::BehaviorFromJson(
    const nlohmann::json& description, std::string_view fallback) {
  absl::StatusOr<std::string> name = StringMember(description, "behavior", fallback);
  if (!name.ok()) return name.status();
  if (*name == "Removed") return Behavior::kRemoved;
  if (*name == "Isolated") return Behavior::kIsolated;
  if (*name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (*name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (*name == "Contiguous") return Behavior::kContiguous;
  return absl::InvalidArgumentError(
      Cat("pre_tokenizer: behavior '", *name,
          "' is not one of Removed, Isolated, MergedWithPrevious, MergedWithNext, "
          "Contiguous"));
}

absl::Status PreTokenizer::AddSplit(const nlohmann::json& description) {
  absl::StatusOr<SplitPattern> pattern = PatternFromJson(description);
  absl::StatusOr<Behavior> behavior = BehaviorFromJson(description, "");
  absl::StatusOr<bool> invert = BoolMember(description, "invert", false);
  if (!pattern.ok()) return pattern.status();
  if (!behavior.ok()) return behavior.status();
  if (!invert.ok()) return invert.status();
  Step step;
  step.kind = Kind::kSplit;
  step.pattern.push_back(*std::move(pattern));
  step.behavior = *behavior;
  step.invert = *invert;
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddByteLevel(const nlohmann::json& description) {
  absl::StatusOr<bool> prefix = BoolMember(description, "add_prefix_space", true);
  absl::StatusOr<bool> use_regex = BoolMember(description, "use_regex", true);
  if (!prefix.ok()) return prefix.status();
  if (!use_regex.ok()) return use_regex.status();
  if (*prefix) {
    Step step;
    step.kind = Kind::kPrefixSpace;
    steps_.push_back(std::move(step));
  }
  if (*use_regex) {
    if (absl::Status s = AddExpression(kGpt2Split, Behavior::kIsolated); !s.ok()) return s;
  }
  byte_level_ = true;
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddMetaspace(const nlohmann::json& description) {
  absl::StatusOr<std::string> replacement = StringMember(description, "replacement", "\u2581");
  absl::StatusOr<bool> legacy_prefix = BoolMember(description, "add_prefix_space", true);
  absl::StatusOr<bool> split = BoolMember(description, "split", true);
  if (!replacement.ok()) return replacement.status();
  if (!legacy_prefix.ok()) return legacy_prefix.status();
  if (!split.ok()) return split.status();
  absl::StatusOr<std::string> scheme =
      StringMember(description, "prepend_scheme", *legacy_prefix ? "always" : "never");
  if (!scheme.ok()) return scheme.status();
  if (replacement->empty() || replacement->size() > 4) {
    return absl::InvalidArgumentError(
        "pre_tokenizer Metaspace: 'replacement' must be one character");
  }

  Step step;
  step.kind = Kind::kMetaspace;
  step.replacement = *replacement;
  step.behavior = Behavior::kMergedWithNext;
  if (*split) step.pattern.push_back(SplitPattern::Literal(*replacement));
  if (*scheme == "always") {
    step.prepend = Prepend::kAlways;
  } else if (*scheme == "first") {
    step.prepend = Prepend::kFirst;
  } else if (*scheme == "never") {
    step.prepend = Prepend::kNever;
  } else {
    return absl::InvalidArgumentError(Cat("pre_tokenizer Metaspace: prepend_scheme '", *scheme,
                                          "' is not always, first or never"));
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

void PreTokenizer::Cut(std::string_view text, const Step& step, std::vector<PatternSpan>* spans,
                       std::vector<std::string_view>* words) {
  step.pattern[0].Find(text, spans);
  const auto word = [&](size_t begin, size_t end) {
    words->push_back(text.substr(begin, end - begin));
  };
  const auto matched = [&](const PatternSpan& span) { return span.matched != step.invert; };
  switch (step.behavior) {
    case Behavior::kRemoved:
      for (const PatternSpan& span : *spans) {
        if (!matched(span)) word(span.begin, span.end);
      }
      break;
    case Behavior::kIsolated:
      for (const PatternSpan& span : *spans) word(span.begin, span.end);
      break;
    case Behavior::kMergedWithPrevious: {
      // The second of two matches in a row stands alone.
      size_t begin = 0;
      for (size_t i = 0; i < spans->size(); ++i) {
        const bool joined =
            i + 1 < spans->size() && matched((*spans)[i + 1]) && !matched((*spans)[i]);
        if (joined) continue;
        word(begin, (*spans)[i].end);
        begin = (*spans)[i].end;
      }
      break;
    }
    case Behavior::kMergedWithNext: {
      // Mirrored: of two matches in a row only the last joins what follows.
      size_t begin = 0;
      for (size_t i = 0; i < spans->size(); ++i) {
        const bool joined =
            i + 1 < spans->size() && matched((*spans)[i]) && !matched((*spans)[i + 1]);
        if (joined) continue;
        word(begin, (*spans)[i].end);
        begin = (*spans)[i].end;
      }
      break;
    }
    case Behavior::kContiguous: {
      size_t begin = 0;
      for (size_t i = 0; i < spans->size(); ++i) {
        if (i + 1 < spans->size() && matched((*spans)[i]) == matched((*spans)[i + 1])) continue;
        word(begin, (*spans)[i].end);
        begin = (*spans)[i].end;
      }
      break;
    }
  }
}

void PreTokenizer::Split(std::string_view text, bool at_start, std::deque<std::string>* arena,
                         std::vector<std::string_view>* words) const {
  if (text.empty()) return;
  std::vector<std::string_view> current = {text};
  std::vector<std::string_view> next;
  std::vector<PatternSpan> spans;
  for (const Step& step : steps_) {
    next.clear();
    for (size_t i = 0; i < current.size(); ++i) {
      const std::string_view word = current[i];
      switch (step.kind) {
        case Kind::kSplit:
          Cut(word, step, &spans, &next);
          break;
        case Kind::kPrefixSpace:
          if (word[0] == ' ') {
            next.push_back(word);
          } else {
            next.push_back(arena->emplace_back(Cat(" ", word)));
          }
          break;
        case Kind::kMetaspace: {
          std::string marked = ReplaceAll(word, " ", step.replacement);
          const bool wanted = step.prepend == Prepend::kAlways ||
                              (step.prepend == Prepend::kFirst && at_start && i == 0);
          if (wanted && marked.rfind(step.replacement, 0) != 0) {
            marked.insert(0, step.replacement);
          }
          const std::string& stored = arena->emplace_back(std::move(marked));
          if (step.pattern.empty()) {
            next.push_back(stored);
          } else {
            Cut(stored, step, &spans, &next);
          }
          break;
        }
      }
    }
    current.swap(next);
  }
  words->insert(words->end(), current.begin(), current.end());
}

}  // namespace nibble
