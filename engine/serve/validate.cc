// SPDX-License-Identifier: Apache-2.0
#include "engine/serve/validate.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace nibble {
namespace {

absl::Status Refuse(absl::string_view field, const absl::AlphaNum& value, absl::string_view range) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; allowed: ", range));
}

// `lowest` itself is not allowed if `open`. NaN is never allowed.
absl::Status CheckFloat(absl::string_view field, float value, float lowest, bool open,
                        float highest, absl::string_view range) {
  const bool above = open ? value > lowest : value >= lowest;
  if (above && value <= highest) return absl::OkStatus();
  return Refuse(field, value, range);
}

absl::Status CheckInt(absl::string_view field, int64_t value, int64_t lowest, int64_t highest) {
  if (value >= lowest && value <= highest) return absl::OkStatus();
  return Refuse(field, value, absl::StrCat(lowest, "..", highest));
}

absl::Status CheckTokens(absl::string_view field, const std::vector<int32_t>& tokens,
                         int32_t vocab) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab) {
      return Refuse(absl::StrCat(field, "[", i, "]"), tokens[i], absl::StrCat("0..", vocab - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckStops(const SamplingParams& sampling, const EngineOptions& options,
                        const RunnerLimits& limits, bool has_text) {
  if (sampling.stop.size() > static_cast<size_t>(options.max_stop_strings)) {
    return Refuse("the number of stop strings", sampling.stop.size(),
                  absl::StrCat("0..", options.max_stop_strings));
  }
  if (!has_text && !sampling.stop.empty()) {
    return absl::InvalidArgumentError("stop: this model has no tokenizer to find strings with");
  }
  for (size_t i = 0; i < sampling.stop.size(); ++i) {
    const size_t size = sampling.stop[i].size();
    if (size == 0 || size > static_cast<size_t>(options.max_stop_bytes)) {
      return Refuse(absl::StrCat("the length of stop[", i, "]"), size,
                    absl::StrCat("1..", options.max_stop_bytes, " bytes"));
    }
  }
  if (sampling.stop_token_ids.size() > static_cast<size_t>(options.max_stop_tokens)) {
    return Refuse("the number of stop_token_ids", sampling.stop_token_ids.size(),
                  absl::StrCat("0..", options.max_stop_tokens));
  }
  return CheckTokens("stop_token_ids", sampling.stop_token_ids, limits.vocab);
}

absl::Status CheckBias(const std::vector<LogitBias>& bias, int32_t max_entries, int32_t vocab) {
  if (bias.size() > static_cast<size_t>(max_entries)) {
    return Refuse("the number of logit_bias entries", bias.size(),
                  absl::StrCat("0..", max_entries));
  }
  std::unordered_set<int32_t> seen;
  for (const LogitBias& entry : bias) {
    if (entry.token < 0 || entry.token >= vocab) {
      return Refuse("a token of logit_bias", entry.token, absl::StrCat("0..", vocab - 1));
    }
    if (!std::isfinite(entry.bias)) {
      return Refuse(absl::StrCat("logit_bias of token ", entry.token), entry.bias,
                    "finite numbers");
    }
    if (!seen.insert(entry.token).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("logit_bias names token ", entry.token, " twice"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

int32_t UsableContext(const RunnerLimits& limits) {
  return static_cast<int32_t>(
      std::min<int64_t>(limits.max_context, int64_t{limits.kv_blocks} * kKvBlockTokens));
}

absl::Status ValidateRequest(const GenerationRequest& request, const EngineOptions& options,
                             const RunnerLimits& limits, bool has_text) {
  const SamplingParams& s = request.sampling;
  const int32_t context = UsableContext(limits);
  constexpr float kMaxFloat = 3.0e38f;

  if (request.prompt.empty()) {
    return Refuse("the length of the prompt", 0, absl::StrCat("1..", context, " tokens"));
  }
  for (const absl::Status& status :
       {CheckInt("max_tokens", s.max_tokens, 0, context),
        CheckInt("min_tokens", s.min_tokens, 0, std::max(s.max_tokens, 0)),
        CheckInt("n", s.n, 1, options.max_choices),
        CheckFloat("temperature", s.temperature, 0, false, kMaxFloat, "0 (greedy) and above"),
        CheckInt("top_k", s.top_k, 0, INT32_MAX),
        CheckFloat("top_p", s.top_p, 0, true, 1, "above 0, up to 1"),
        CheckFloat("min_p", s.min_p, 0, false, 1, "0..1"),
        CheckFloat("repetition_penalty", s.repetition_penalty, 0, true, kMaxFloat, "above 0"),
        CheckFloat("presence_penalty", s.presence_penalty, -2, false, 2, "-2..2"),
        CheckFloat("frequency_penalty", s.frequency_penalty, -2, false, 2, "-2..2"),
        CheckInt("logprobs", s.logprobs.value_or(0), 0, kMaxLogprobs),
        CheckInt("prompt_logprobs", s.prompt_logprobs.value_or(0), 0, kMaxLogprobs),
        CheckBias(s.logit_bias, options.max_logit_bias, limits.vocab),
        CheckStops(s, options, limits, has_text)}) {
    if (!status.ok()) return status;
  }
  const int64_t total = static_cast<int64_t>(request.prompt.size()) + s.max_tokens;
  if (total > context) {
    return absl::OutOfRangeError(absl::StrCat(
        "prompt (", request.prompt.size(), " tokens) + max_tokens (", s.max_tokens, ") is ", total,
        "; allowed: 1..", context, " (the context this model is served with)"));
  }
  return CheckTokens("prompt", request.prompt, limits.vocab);
}

absl::Status ValidateOptions(const EngineOptions& options, const RunnerLimits& limits) {
  for (const absl::Status& status :
       {CheckInt("prefill_chunk", options.prefill_chunk, 0, limits.max_rows),
        CheckInt("max_waiting", options.max_waiting, 1, 1 << 20),
        CheckInt("max_queued_tokens", options.max_queued_tokens, 1, int64_t{1} << 40),
        CheckInt("max_choices", options.max_choices, 1, options.max_waiting),
        CheckInt("max_stop_strings", options.max_stop_strings, 0, 1024),
        CheckInt("max_stop_bytes", options.max_stop_bytes, 1, 1 << 16),
        CheckInt("max_stop_tokens", options.max_stop_tokens, 0, 1 << 16),
        CheckInt("max_logit_bias", options.max_logit_bias, 0, 1 << 20),
        CheckInt("slow_reader (ms)", options.slow_reader.count(), 1, 86400000)}) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace nibble
