// SPDX-License-Identifier: Apache-2.0
#include "engine/serve/choice.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace nibble {
namespace {

void SortUnique(std::vector<int32_t>& ids) {
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
}

}  // namespace

SamplingPlan::SamplingPlan(const SamplingParams& wanted, uint64_t drawn_seed,
                           const std::vector<int32_t>& eos)
    : params(wanted),
      seed(wanted.seed.value_or(drawn_seed)),
      stop_ids(wanted.stop_token_ids),
      penalties(wanted.repetition_penalty != 1.0f || wanted.presence_penalty != 0.0f ||
                wanted.frequency_penalty != 0.0f) {
  for (const LogitBias& entry : wanted.logit_bias) {
    bias_ids.push_back(entry.token);
    bias.push_back(entry.bias);
  }
  if (!wanted.ignore_eos) stop_ids.insert(stop_ids.end(), eos.begin(), eos.end());
  SortUnique(stop_ids);
  if (wanted.min_tokens > 0) {
    banned = wanted.stop_token_ids;
    banned.insert(banned.end(), eos.begin(), eos.end());
    SortUnique(banned);
  }
}

Choice::Choice(const std::vector<int32_t>& prompt, const SamplingPlan& plan, int32_t index,
               std::unique_ptr<TextDecoder> decoder)
    : prompt_(prompt),
      plan_(plan),
      index_(index),
      text_(std::move(decoder), plan.params.stop, plan.params.include_stop_str_in_output) {
  output_.reserve(static_cast<size_t>(std::min(plan.params.max_tokens, 4096)));
  if (plan.penalties) {
    for (const int32_t token : prompt) Count(token, 0);
  }
}

void Choice::Count(int32_t token, int32_t occurrences) {
  const auto [entry, added] = seen_at_.try_emplace(token, seen_ids_.size());
  if (added) {
    seen_ids_.push_back(token);
    output_counts_.push_back(occurrences);
  } else {
    output_counts_[entry->second] += occurrences;
  }
}

SamplingRow Choice::Row(int32_t ahead, int32_t at) const {
  NIBBLE_CHECK(ahead == 0 || ahead == 1);
  const SamplingParams& params = plan_.params;
  SamplingRow row;
  row.temperature = params.temperature;
  row.top_k = params.top_k;
  row.top_p = params.top_p;
  row.min_p = params.min_p;
  row.repetition_penalty = params.repetition_penalty;
  row.presence_penalty = params.presence_penalty;
  row.frequency_penalty = params.frequency_penalty;
  row.seed = plan_.seed;
  row.choice = static_cast<uint32_t>(index_);
  row.position =
      static_cast<uint32_t>(prompt_.size() + output_.size()) + static_cast<uint32_t>(ahead);
  row.logprobs = params.logprobs.value_or(-1);
  row.bias_ids = plan_.bias_ids.data();
  row.bias = plan_.bias.data();
  row.num_bias = static_cast<int32_t>(plan_.bias.size());
  if (generated() + ahead < params.min_tokens) {
    row.banned_ids = plan_.banned.data();
    row.num_banned = static_cast<int32_t>(plan_.banned.size());
  }
  if (plan_.penalties) {
    row.seen_ids = seen_ids_.data();
    row.output_counts = output_counts_.data();
    row.num_seen = static_cast<int32_t>(seen_ids_.size());
    if (ahead > 0) row.unlisted = at;
  }
  return row;
}

void Choice::Accept(const SampleResult& drawn, Delta* delta) {
  const SamplingParams& params = plan_.params;
  output_.push_back(drawn.token);
  if (plan_.penalties) Count(drawn.token, 1);
  delta->choice = index_;
  delta->tokens.push_back(drawn.token);
  if (params.logprobs) {
    TokenLogprob& entry = delta->logprobs.emplace_back();
    entry.token = drawn.token;
    entry.logprob = drawn.logprob;
    for (size_t i = 0; i < static_cast<size_t>(drawn.num_top); ++i) {
      entry.top.push_back({drawn.top_ids[i], drawn.top_logprobs[i]});
    }
  }
  if (generated() > params.min_tokens &&
      std::binary_search(plan_.stop_ids.begin(), plan_.stop_ids.end(), drawn.token)) {
    delta->stop_token = drawn.token;
    End(FinishReason::kStop, delta);
    return;
  }
  if (text_.Append(drawn.token, generated() >= params.min_tokens, &delta->text)) {
    delta->stop_string = text_.stop_string();
    delta->finish = FinishReason::kStop;
  } else if (generated() >= params.max_tokens) {
    End(FinishReason::kLength, delta);
  }
}

void Choice::End(FinishReason reason, Delta* delta) {
  delta->choice = index_;
  delta->finish = reason;
  text_.Finish(&delta->text);
}

}  // namespace nibble
