// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/sampling.h"

namespace nibble {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

void Edit(const SamplingRow& params, const int32_t* tokens, float* logits) {
  for (int32_t i = 0; i < params.num_bias; ++i) logits[params.bias_ids[i]] += params.bias[i];
  for (int32_t i = 0; i < params.num_banned; ++i) logits[params.banned_ids[i]] = kMinusInfinity;
  const auto penalize = [&params, logits](int32_t token, int32_t count) {
    logits[token] = Penalize(logits[token], count, params.repetition_penalty,
                             params.presence_penalty, params.frequency_penalty);
  };
  int32_t unlisted = params.unlisted >= 0 ? tokens[params.unlisted] : -1;
  for (int32_t i = 0; i < params.num_seen; ++i) {
    const int32_t token = params.seen_ids[i];
    const int32_t count = params.output_counts != nullptr ? params.output_counts[i] : 0;
    penalize(token, token == unlisted ? count + 1 : count);
    if (token == unlisted) unlisted = -1;
  }
  if (unlisted >= 0) penalize(unlisted, 1);
}

// The first of the largest logits; -1 if one is NaN or +inf, or all are -inf.
int32_t FirstLargest(const float* logits, int64_t vocabulary) {
  int64_t best = -1;
  float largest = kMinusInfinity;
  for (int64_t i = 0; i < vocabulary; ++i) {
    if (!(logits[i] < std::numeric_limits<float>::infinity())) return -1;
    if (logits[i] > largest) {
      largest = logits[i];
      best = i;
    }
  }
  return static_cast<int32_t>(best);
}

// The `count` largest logits, ties to the lower id, by insertion.
void TopLogits(const float* logits, int64_t vocabulary, int count, SampleResult& result) {
  if (count == 0) return;
  int held = 0;
  for (int64_t i = 0; i < vocabulary; ++i) {
    const float logit = logits[i];
    if (logit == kMinusInfinity) continue;
    if (held == count && !(logit > result.top_logprobs[static_cast<size_t>(held - 1)])) continue;
    int at = held < count ? held++ : held - 1;
    for (; at > 0 && logit > result.top_logprobs[static_cast<size_t>(at - 1)]; --at) {
      result.top_logprobs[static_cast<size_t>(at)] =
          result.top_logprobs[static_cast<size_t>(at - 1)];
      result.top_ids[static_cast<size_t>(at)] = result.top_ids[static_cast<size_t>(at - 1)];
    }
    result.top_logprobs[static_cast<size_t>(at)] = logit;
    result.top_ids[static_cast<size_t>(at)] = static_cast<int32_t>(i);
  }
  result.num_top = held;
}

// Tokens in descending order of logit, ties to the lower id, sorted only as far as they are read.
class DescendingTokens {
 public:
  DescendingTokens(const float* logits, const float* weights, int64_t vocabulary,
                   std::vector<int32_t>& ids)
      : logits_(logits), weights_(weights), vocabulary_(vocabulary), ids_(ids) {
    ids_.clear();
  }

  // The id at `rank`, or -1 when the tokens with a positive weight are used up.
  int32_t At(size_t rank) {
    while (rank >= sorted_) {
      if (sorted_ < ids_.size()) {
        SortMore();
      } else if (!CollectMore()) {
        return -1;
      }
    }
    return ids_[rank];
  }

 private:
  // Appends the tokens whose weight lies in the next lower range; false when there is no range
  // left.
  bool CollectMore() {
    if (floor_ == 0.0f) return false;
    const float ceiling = floor_;
    floor_ = floor_ > 1.0f ? 1e-2f : floor_ > 1e-4f ? 1e-6f : 0.0f;
    for (int64_t i = 0; i < vocabulary_; ++i) {
      if (weights_[i] < ceiling && weights_[i] >= floor_ && weights_[i] > 0.0f) {
        ids_.push_back(static_cast<int32_t>(i));
      }
    }
    return true;
  }

  void SortMore() {
    const auto before = [this](int32_t a, int32_t b) {
      return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b);
    };
    const size_t end = std::min(ids_.size(), sorted_ + std::max<size_t>(sorted_, 64));
    const auto first = ids_.begin() + static_cast<std::ptrdiff_t>(sorted_);
    const auto last = ids_.begin() + static_cast<std::ptrdiff_t>(end);
    if (last != ids_.end()) std::nth_element(first, last, ids_.end(), before);
    std::sort(first, last, before);
    sorted_ = end;
  }

  const float* logits_;
  const float* weights_;
  int64_t vocabulary_;
  std::vector<int32_t>& ids_;
  size_t sorted_ = 0;
  float floor_ = std::numeric_limits<float>::infinity();
};

int32_t Draw(const KernelTable& kernels, const SamplingRow& params, const float* logits,
             int64_t vocabulary, float largest, SamplerScratch& scratch) {
  float* weights = scratch.weights.data();
  double total = kernels.exp_row(logits, vocabulary, largest, params.temperature, weights);
  DescendingTokens tokens(logits, weights, vocabulary, scratch.candidates);

  // The kept tokens are the first `kept` in descending order. A limit is found only where one is
  // set, so that a plain draw reads no further than its token.
  const auto unlimited = static_cast<size_t>(vocabulary);
  size_t kept = unlimited;
  if (params.top_k > 0 && params.top_k < vocabulary) {
    kept = 0;
    total = 0;
    for (; kept < static_cast<size_t>(params.top_k); ++kept) {
      const int32_t id = tokens.At(kept);
      if (id < 0) break;
      total += static_cast<double>(weights[id]);
    }
  }
  if (params.top_p < 1.0f) {
    // The shortest run whose share of what top_k left reaches top_p, at least one token.
    const double wanted = static_cast<double>(params.top_p) * total;
    double mass = 0;
    size_t count = 0;
    while (count < kept) {
      const int32_t id = tokens.At(count);
      if (id < 0) break;
      mass += static_cast<double>(weights[id]);
      ++count;
      if (mass >= wanted) break;
    }
    kept = count;
    total = mass;
  }
  if (params.min_p > 0.0f) {
    const float least = params.min_p * weights[tokens.At(0)];
    double mass = 0;
    size_t count = 0;
    while (count < kept) {
      const int32_t id = tokens.At(count);
      if (id < 0 || weights[id] < least) break;
      mass += static_cast<double>(weights[id]);
      ++count;
    }
    kept = std::max<size_t>(count, 1);
    total = mass;
  }

  const double target = UniformAt(params.seed, params.choice, params.position, 0) * total;
  double mass = 0;
  int32_t token = tokens.At(0);
  for (size_t rank = 0; rank < kept; ++rank) {
    const int32_t id = tokens.At(rank);
    if (id < 0) break;
    token = id;
    mass += static_cast<double>(weights[id]);
    if (mass > target) break;
  }
  return token;
}

}  // namespace

SampleResult SampleRow(const KernelTable& kernels, const SamplingRow& params, const int32_t* tokens,
                       float* logits, int64_t vocabulary, SamplerScratch& scratch) {
  SampleResult result;
  Edit(params, tokens, logits);
  const int32_t best = FirstLargest(logits, vocabulary);
  if (best < 0) {
    result.finite = false;
    return result;
  }
  const float largest = logits[best];
  result.token = params.temperature > 0.0f
                     ? Draw(kernels, params, logits, vocabulary, largest, scratch)
                     : best;
  if (params.logprobs >= 0) {
    const double total = kernels.exp_row(logits, vocabulary, largest, 1.0f, scratch.weights.data());
    const double normalizer = static_cast<double>(largest) + std::log(total);
    const auto logprob = [normalizer](float logit) {
      return static_cast<float>(static_cast<double>(logit) - normalizer);
    };
    result.logprob = logprob(logits[result.token]);
    TopLogits(logits, vocabulary, std::min(params.logprobs, kMaxLogprobs), result);
    for (int32_t i = 0; i < result.num_top; ++i) {
      auto& value = result.top_logprobs[static_cast<size_t>(i)];
      value = logprob(value);
    }
  }
  return result;
}

}  // namespace nibble
