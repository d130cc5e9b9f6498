// SPDX-License-Identifier: Apache-2.0
// One choice of a request while it is generated: its tokens, what sampling needs to know of them,
// and when it ends. Driven by the engine's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/serve/request.h"
#include "engine/serve/text_assembler.h"
#include "engine/serve/token_stream.h"
#include "kernels/ops.h"

namespace nibble {

// What the choices of a request have in common, derived once.
struct SamplingPlan {
  SamplingPlan(const SamplingParams& params, uint64_t drawn_seed, const std::vector<int32_t>& eos);

  SamplingParams params;
  uint64_t seed;
  std::vector<int32_t> bias_ids;  // logit_bias as two lists
  std::vector<float> bias;
  std::vector<int32_t> stop_ids;  // tokens that end the output, ascending
  std::vector<int32_t> banned;    // until min_tokens: end-of-sequence and stop tokens, ascending
  bool penalties;                 // whether seen tokens must be counted
};

class Choice {
 public:
  // `prompt` and `plan` outlive the choice. decoder may be nullptr.
  Choice(const std::vector<int32_t>& prompt, const SamplingPlan& plan, int32_t index,
         std::unique_ptr<TextDecoder> decoder);

  int32_t index() const { return index_; }
  int32_t generated() const { return static_cast<int32_t>(output_.size()); }
  int32_t token(int32_t position) const {
    const auto at = static_cast<size_t>(position);
    return at < prompt_.size() ? prompt_[at] : output_[at - prompt_.size()];
  }

  // How the next token is drawn, or, if `ahead` is 1, the one after it: the next is drawn and not
  // accepted yet, and stands in row `at` of the step. Its pointers are valid until Accept.
  SamplingRow Row(int32_t ahead, int32_t at) const;

  // Takes the drawn token; fills `delta`, whose `finish` says whether the choice ends with it.
  void Accept(const SampleResult& drawn, Delta* delta);
  // Ends the choice for an outside reason: the text that was held back goes into `delta`.
  void End(FinishReason reason, Delta* delta);

 private:
  void Count(int32_t token, int32_t occurrences);

  const std::vector<int32_t>& prompt_;
  const SamplingPlan& plan_;
  const int32_t index_;
  TextAssembler text_;
  std::vector<int32_t> output_;
  // Tokens of prompt and output, each once, and how often each was in the output.
  std::vector<int32_t> seen_ids_;
  std::vector<int32_t> output_counts_;
  std::unordered_map<int32_t, size_t> seen_at_;
};

}  // namespace nibble
