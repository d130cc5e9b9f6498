// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/split_pattern.h"

namespace nibble {

// What is done to text before it is cut into words. Immutable and thread-safe.
class Normalizer {
 public:
  // Does nothing.
  Normalizer() = default;

  // The "normalizer" member of a tokenizer.json: Sequence, Prepend, Replace, Strip, NFC, NFD,
  // NFKC, NFKD. Another type is an error that names it.
  static absl::StatusOr<Normalizer> FromJson(const nlohmann::json& description);

  // SentencePiece's treatment of spaces: optionally collapse runs of U+0020 and trim both ends,
  // optionally prepend a space, then write every space as U+2581.
  static Normalizer SentencePiece(bool add_dummy_prefix, bool remove_extra_whitespaces);

  // Only the text at the very start gets a prefix (tokenizers said to be "legacy": false).
  void PrependOnlyAtStart();

  // `text` is valid UTF-8; `at_start` says whether it begins the whole input. The result is valid
  // UTF-8 and longer than the text by a constant factor at most.
  std::string Apply(std::string_view text, bool at_start) const;

  // True when Apply returns its argument for every text.
  bool IsIdentity() const { return steps_.empty(); }

 private:
  enum class Kind { kPrepend, kReplace, kStrip, kCollapseSpaces, kNfc, kNfd, kNfkc, kNfkd };
  struct Step {
    Kind kind;
    std::string content;                // kPrepend, kReplace
    std::vector<SplitPattern> pattern;  // kReplace: exactly one
    bool strip_left = false;            // kStrip
    bool strip_right = false;           // kStrip
    bool only_at_start = false;         // kPrepend
  };

  static absl::Status AddSteps(const nlohmann::json& description, int depth,
                               std::vector<Step>* steps);

  std::vector<Step> steps_;
};

// The pattern member of a Replace normaliser or Split pre-tokenizer: {"String": s} or {"Regex": s}.
absl::StatusOr<SplitPattern> PatternFromJson(const nlohmann::json& owner);

}  // namespace nibble
