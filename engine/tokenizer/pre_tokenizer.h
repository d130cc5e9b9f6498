// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/split_pattern.h"

namespace nibble {

// The regular expressions by which known byte-level vocabularies cut text into words.
extern const char kGpt2Split[];
extern const char kLlama3Split[];
extern const char kQwen2Split[];

// Cuts normalised text into the words inside which merging happens. Immutable and thread-safe.
class PreTokenizer {
 public:
  // Leaves the text whole.
  PreTokenizer() = default;

  // The "pre_tokenizer" member of a tokenizer.json: Sequence, Split, ByteLevel (last in its
  // sequence), Metaspace, Digits, Punctuation. Another type is an error that names it.
  static absl::StatusOr<PreTokenizer> FromJson(const nlohmann::json& description);

  // One regular expression whose matches and gaps are the words, over a byte-level vocabulary.
  static absl::StatusOr<PreTokenizer> ByteLevelSplit(std::string_view expression);

  // True when the vocabulary's symbols are bytes, written in tokenizer.json through the GPT-2
  // byte alphabet.
  bool byte_level() const { return byte_level_; }
  bool IsIdentity() const { return steps_.empty(); }

  // Appends the words of `text` (valid UTF-8) to `words`. They point into `text` or `arena`.
  // `at_start` says whether `text` begins the whole input.
  void Split(std::string_view text, bool at_start, std::deque<std::string>* arena,
             std::vector<std::string_view>* words) const;

 private:
  enum class Kind { kSplit, kPrefixSpace, kMetaspace };
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kAlways, kFirst, kNever };
  struct Step {
    Kind kind;
    std::vector<SplitPattern> pattern;  // kSplit, and kMetaspace where it splits: one
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;
    std::string replacement;  // kMetaspace
    Prepend prepend = Prepend::kNever;
  };

  absl::Status AddSteps(const nlohmann::json& description, int depth);
  absl::Status AddSplit(const nlohmann::json& description);
  absl::Status AddByteLevel(const nlohmann::json& description);
  absl::Status AddMetaspace(const nlohmann::json& description);
  absl::Status AddExpression(std::string_view expression, Behavior behavior);
  static absl::StatusOr<Behavior> BehaviorFromJson(const nlohmann::json& description,
                                                   std::string_view fallback);
  static void Cut(std::string_view text, const Step& step, std::vector<PatternSpan>* spans,
                  std::vector<std::string_view>* words);

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace nibble
