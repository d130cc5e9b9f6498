// SPDX-License-Identifier: Apache-2.0
#include "engine/eval/evaluation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <thread>
#include <utility>

#include "engine/base/cat.h"

namespace nibble {
namespace {

double PerPrediction(const Evaluation& evaluation, double DocumentScore::*field) {
  double sum = 0;
  for (const DocumentScore& document : evaluation.documents) sum += document.*field;
  const int64_t count = evaluation.predictions();
  return count == 0 ? 0.0 : sum / static_cast<double>(count);
}

// log of the sum of exponentials, in double.
double LogSumExp(const float* logits, int64_t vocab, float max) {
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += static_cast<double>(std::exp(logits[i] - max));
  return static_cast<double>(max) + std::log(sum);
}

}  // namespace

int64_t Evaluation::predictions() const {
  int64_t sum = 0;
  for (const DocumentScore& document : documents) sum += document.predictions;
  return sum;
}

double Evaluation::nll() const { return PerPrediction(*this, &DocumentScore::nll); }
double Evaluation::perplexity() const { return std::exp(nll()); }
double Evaluation::reference_nll() const {
  return PerPrediction(*this, &DocumentScore::reference_nll);
}
double Evaluation::kl() const { return PerPrediction(*this, &DocumentScore::kl); }
double Evaluation::same_top() const {
  int64_t same = 0;
  for (const DocumentScore& document : documents) same += document.same_top;
  const int64_t count = predictions();
  return count == 0 ? 0.0 : static_cast<double>(same) / static_cast<double>(count);
}

double Evaluation::miss_gap() const {
  double largest = 0;
  for (const DocumentScore& document : documents) largest = std::max(largest, document.miss_gap);
  return largest;
}

absl::StatusOr<std::vector<EvaluationWindow>> PlanWindows(const std::vector<Document>& documents,
                                                          int64_t vocab, int32_t size,
                                                          const EvaluateOptions& options) {
  if (size < 2) {
    return absl::InvalidArgumentError(Cat("window is ", size, "; it must be at least 2"));
  }
  std::vector<EvaluationWindow> windows;
  int64_t predictions = 0;
  for (size_t index = 0; index < documents.size(); ++index) {
    const Document& document = documents[index];
    size_t length = document.size();
    if (options.max_tokens > 0) length = std::min(length, static_cast<size_t>(options.max_tokens));
    const bool restart = length > 0 && options.bos_id >= 0 && document[0] == options.bos_id;
    size_t at = 0;
    while (at < length) {
      EvaluationWindow window{index, {}};
      if (at > 0 && restart) window.tokens.push_back(options.bos_id);
      const size_t take = std::min(length - at, static_cast<size_t>(size) - window.tokens.size());
      for (const size_t end = at + take; at < end; ++at) {
        if (document[at] < 0 || document[at] >= vocab) {
          return absl::InvalidArgumentError(Cat("document ", index + 1, " holds token ",
                                                document[at], "; the model's ids are 0..",
                                                vocab - 1));
        }
        window.tokens.push_back(document[at]);
      }
      if (window.tokens.size() < 2) continue;
      predictions += static_cast<int64_t>(window.tokens.size()) - 1;
      windows.push_back(std::move(window));
      if (options.max_predictions > 0 && predictions >= options.max_predictions) return windows;
    }
  }
  if (windows.empty()) return absl::InvalidArgumentError("the text holds no token to predict");
  return windows;
}

const KvFormat& ReferenceKvFormat(const KvFormat& kv) {
  return kv.quantized() ? *FindKvFormat("bf16") : kv;
}

ScoreSum::Row ScoreSum::ScoreRow(const float* logits, const float* reference,
                                 int32_t target) const {
  Row score;
  const float* top = std::max_element(logits, logits + vocab_);
  const double log_sum = LogSumExp(logits, vocab_, *top);
  score.nll = log_sum - static_cast<double>(logits[target]);
  if (!with_reference_) return score;
  const float* reference_top = std::max_element(reference, reference + vocab_);
  const double reference_log_sum = LogSumExp(reference, vocab_, *reference_top);
  score.reference_nll = reference_log_sum - static_cast<double>(reference[target]);
  for (int64_t i = 0; i < vocab_; ++i) {
    const double log_p = static_cast<double>(reference[i]) - reference_log_sum;
    const double log_q = static_cast<double>(logits[i]) - log_sum;
    score.kl += static_cast<double>(std::exp(static_cast<float>(log_p))) * (log_p - log_q);
  }
  score.same_top = top - logits == reference_top - reference;
  if (!score.same_top) {
    float second = -std::numeric_limits<float>::infinity();
    for (const float* logit = reference; logit < reference + vocab_; ++logit) {
      if (logit != reference_top) second = std::max(second, *logit);
    }
    score.miss_gap = static_cast<double>(*reference_top) - static_cast<double>(second);
  }
  return score;
}

void ScoreSum::Add(size_t document, const float* logits, const float* reference,
                   std::span<const int32_t> targets) {
  rows_.resize(targets.size());
  const size_t workers =
      std::min<size_t>(std::max(1u, std::thread::hardware_concurrency()), targets.size());
  auto work = [&](size_t worker) {
    for (size_t row = worker; row < targets.size(); row += workers) {
      const size_t offset = row * static_cast<size_t>(vocab_);
      rows_[row] =
          ScoreRow(logits + offset, with_reference_ ? reference + offset : nullptr, targets[row]);
    }
  };
  std::vector<std::thread> threads;
  for (size_t worker = 1; worker < workers; ++worker) threads.emplace_back(work, worker);
  work(0);
  for (std::thread& thread : threads) thread.join();

  if (sum_.documents.size() <= document) sum_.documents.resize(document + 1);
  DocumentScore& total = sum_.documents[document];
  for (const Row& row : rows_) {
    total.nll += row.nll;
    total.reference_nll += row.reference_nll;
    total.kl += row.kl;
    total.same_top += row.same_top ? 1 : 0;
    total.miss_gap = std::max(total.miss_gap, row.miss_gap);
  }
  total.predictions += static_cast<int64_t>(targets.size());
}

absl::StatusOr<Evaluation> ScoreSum::Finish() {
  if (!std::isfinite(sum_.nll())) {
    return absl::InternalError("the model gives logits that are not finite");
  }
  return std::move(sum_);
}

}  // namespace nibble
