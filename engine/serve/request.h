// SPDX-License-Identifier: Apache-2.0
// What is asked of the engine, and what it says when it is done. Plain data.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace nibble {

using SteadyTime = std::chrono::steady_clock::time_point;

struct LogitBias {
  int32_t token = 0;  // [0, vocabulary), unique in the list
  float bias = 0.0f;  // finite; added to the token's logit
};

// Names and defaults are vLLM's (vllm.SamplingParams).
struct SamplingParams {
  float temperature = 1.0f;         // >= 0; 0 = greedy
  int32_t top_k = 0;                // >= 0; 0 = off
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1]
  float repetition_penalty = 1.0f;  // > 0; over prompt and output
  float presence_penalty = 0.0f;    // [-2, 2]; over the output
  float frequency_penalty = 0.0f;   // [-2, 2]; over the output
  std::vector<LogitBias> logit_bias;
  std::optional<uint64_t> seed;         // none: the engine draws one and tells it in PromptInfo
  std::vector<int32_t> stop_token_ids;  // end the output; they are its last token id, not its text
  std::vector<std::string> stop;        // end the output where one of them appears in the text
  bool include_stop_str_in_output = false;
  bool skip_special_tokens = true;  // leave special tokens out of the text
  bool ignore_eos = false;          // go on after an end-of-sequence token
  int32_t min_tokens = 0;           // before these no stop token is drawn, no stop string matched
  int32_t max_tokens = 16;  // >= 0; 0 = nothing is generated (with prompt_logprobs: score a text)
  int32_t n = 1;            // independent choices, >= 1
  // Log-probabilities of the drawn tokens; 0 = of those only, k = also of the k most likely.
  std::optional<int32_t> logprobs;
  // The same for the prompt's own tokens.
  std::optional<int32_t> prompt_logprobs;
};

struct GenerationRequest {
  std::vector<int32_t> prompt;  // token ids, at least one, each in [0, vocabulary)
  SamplingParams sampling;
  SteadyTime deadline = SteadyTime::max();
};

enum class FinishReason : uint8_t {
  kNone,        // not finished
  kStop,        // an end-of-sequence token, stop token or stop string
  kLength,      // max_tokens
  kCancelled,   // Engine::Cancel
  kDeadline,    // the request's deadline passed
  kSlowReader,  // its reader did not take what was there
  kError,       // this request failed (logits without a finite value)
  kShutdown,    // the engine failed, or stopped before the request was done
};
inline constexpr int kNumFinishReasons = 8;

// "stop", "length", ...; public: metric labels and the contract use them.
const char* FinishReasonName(FinishReason reason);

struct TopLogprob {
  int32_t token = 0;
  float logprob = 0.0f;  // natural logarithm
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0.0f;
  std::vector<TopLogprob> top;  // most likely first
};

// What is known when a request begins to run.
struct PromptInfo {
  int32_t prompt_tokens = 0;
  uint64_t seed = 0;  // the request's, or the one that was drawn
  // Entry i belongs to prompt token i + 1 (the first has no prediction). Empty unless asked for.
  std::vector<TokenLogprob> prompt_logprobs;
};

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;  // over all choices, end-of-sequence and stop tokens included
};

// Seconds. A part that was never reached is 0.
struct Timings {
  double queue = 0;                // from Submit to the first step that contains the request
  double prefill = 0;              // from there to the first token
  double decode = 0;               // from the first token to the last
  double time_to_first_token = 0;  // from Submit
  double total = 0;                // from Submit to the end
};

}  // namespace nibble
