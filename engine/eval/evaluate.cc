// SPDX-License-Identifier: Apache-2.0
#include "engine/eval/evaluate.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <thread>

#include "absl/strings/str_cat.h"
#include "engine/model/prefill_batch.h"

namespace nibble {
namespace {

// A decoder with a KV pool for one window.
class Scorer {
 public:
  static absl::StatusOr<std::unique_ptr<Scorer>> Make(Decoder& model, const KvFormat& kv,
                                                      int32_t window) {
    auto scorer = std::make_unique<Scorer>(model);
    const int32_t rows = std::min(model.options().max_rows, model.options().max_logit_rows);
    auto batch = PrefillBatch::Make(model.backend(), rows, 1, window);
    if (!batch.ok()) return batch.status();
    scorer->batch_ = *std::move(batch);
    auto memory = model.backend().AllocateKv(model.MakeKvSpec(kv), PrefillBatch::BlocksFor(window),
                                             &scorer->pool_);
    if (!memory.ok()) return memory.status();
    scorer->kv_ = *std::move(memory);
    scorer->logits_.resize(static_cast<size_t>(rows) * static_cast<size_t>(model.config().vocab));
    return scorer;
  }

  explicit Scorer(Decoder& model) : model_(model) {}

  int32_t chunk_rows() const { return batch_->max_rows(); }

  // Logits of tokens [start, start + count) of the window, (count, vocab), valid until the next
  // call. Chunks of a window are given in order.
  absl::StatusOr<const float*> Logits(std::span<const int32_t> window, int32_t start,
                                      int32_t count) {
    const PrefillBatch::Chunk chunk{
        window.subspan(static_cast<size_t>(start), static_cast<size_t>(count)), start, 0};
    const BatchView& view = batch_->Set(std::span(&chunk, 1), /*logits=*/true);
    const float* device = model_.Forward(view, pool_);
    model_.backend().Download(
        logits_.data(), device,
        static_cast<size_t>(count) * static_cast<size_t>(model_.config().vocab) * sizeof(float));
    if (absl::Status status = model_.backend().Sync(); !status.ok()) return status;
    return logits_.data();
  }

 private:
  Decoder& model_;
  std::unique_ptr<PrefillBatch> batch_;
  std::unique_ptr<Buffer> kv_;
  KvPool pool_;
  std::vector<float> logits_;
};

// log of the sum of exponentials, in double.
double LogSumExp(const float* logits, int64_t vocab, float max) {
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += static_cast<double>(std::exp(logits[i] - max));
  return static_cast<double>(max) + std::log(sum);
}

struct RowScore {
  double nll = 0;
  double reference_nll = 0;
  double kl = 0;
  bool same_top = true;
};

RowScore ScoreRow(const float* logits, const float* reference, int64_t vocab, int32_t target) {
  RowScore score;
  const float* top = std::max_element(logits, logits + vocab);
  const double log_sum = LogSumExp(logits, vocab, *top);
  score.nll = log_sum - static_cast<double>(logits[target]);
  if (reference == nullptr) return score;
  const float* reference_top = std::max_element(reference, reference + vocab);
  const double reference_log_sum = LogSumExp(reference, vocab, *reference_top);
  score.reference_nll = reference_log_sum - static_cast<double>(reference[target]);
  for (int64_t i = 0; i < vocab; ++i) {
    const double log_p = static_cast<double>(reference[i]) - reference_log_sum;
    const double log_q = static_cast<double>(logits[i]) - log_sum;
    score.kl += static_cast<double>(std::exp(static_cast<float>(log_p))) * (log_p - log_q);
  }
  score.same_top = top - logits == reference_top - reference;
  return score;
}

// Scores rows on all CPUs; every row is scored by itself, so the split does not show.
void ScoreRows(const float* logits, const float* reference, int64_t vocab,
               std::span<const int32_t> targets, std::vector<RowScore>* scores) {
  scores->resize(targets.size());
  const size_t workers =
      std::min<size_t>(std::max(1u, std::thread::hardware_concurrency()), targets.size());
  auto work = [&](size_t worker) {
    for (size_t row = worker; row < targets.size(); row += workers) {
      const size_t offset = row * static_cast<size_t>(vocab);
      (*scores)[row] =
          ScoreRow(logits + offset, reference == nullptr ? nullptr : reference + offset, vocab,
                   targets[row]);
    }
  };
  std::vector<std::thread> threads;
  for (size_t worker = 1; worker < workers; ++worker) threads.emplace_back(work, worker);
  work(0);
  for (std::thread& thread : threads) thread.join();
}

std::vector<Document> Windows(const Document& document, const EvaluateOptions& options,
                              int32_t window) {
  size_t length = document.size();
  if (options.max_tokens > 0) length = std::min(length, static_cast<size_t>(options.max_tokens));
  std::vector<Document> windows;
  const bool bos = !document.empty() && options.bos_id >= 0 && document[0] == options.bos_id;
  size_t at = 0;
  while (at < length) {
    Document part;
    if (at > 0 && bos) part.push_back(options.bos_id);
    const size_t take = std::min(length - at, static_cast<size_t>(window) - part.size());
    part.insert(part.end(), document.begin() + static_cast<std::ptrdiff_t>(at),
                document.begin() + static_cast<std::ptrdiff_t>(at + take));
    at += take;
    windows.push_back(std::move(part));
  }
  return windows;
}

double PerPrediction(const Evaluation& evaluation, double DocumentScore::*field) {
  double sum = 0;
  for (const DocumentScore& document : evaluation.documents) sum += document.*field;
  const int64_t count = evaluation.predictions();
  return count == 0 ? 0.0 : sum / static_cast<double>(count);
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

absl::StatusOr<Evaluation> Evaluate(Decoder& model, Decoder* reference,
                                    const std::vector<Document>& documents, const KvFormat& kv,
                                    const EvaluateOptions& options) {
  const int64_t vocab = model.config().vocab;
  int32_t window = options.window > 0 ? options.window : model.options().max_context;
  window = std::min(window, model.options().max_context);
  if (reference != nullptr) {
    if (reference->config().vocab != vocab) {
      return absl::InvalidArgumentError(
          absl::StrCat("the reference has a vocabulary of ", reference->config().vocab,
                       ", the model one of ", vocab, "; they must be equal"));
    }
    window = std::min(window, reference->options().max_context);
  }
  if (window < 2)
    return absl::InvalidArgumentError(
        absl::StrCat("window is ", window, "; it must be at least 2"));

  auto scorer = Scorer::Make(model, kv, window);
  if (!scorer.ok()) return scorer.status();
  std::unique_ptr<Scorer> reference_scorer;
  int32_t chunk_rows = (*scorer)->chunk_rows();
  if (reference != nullptr) {
    // The yardstick keeps its cache in bf16 at least: it is the model as it was before anything was
    // quantized.
    const KvFormat& reference_kv = *FindKvFormat(kv.scaled ? "bf16" : kv.name);
    auto made = Scorer::Make(*reference, reference_kv, window);
    if (!made.ok()) return made.status();
    reference_scorer = *std::move(made);
    chunk_rows = std::min(chunk_rows, reference_scorer->chunk_rows());
  }

  Evaluation evaluation;
  int64_t predictions = 0;
  std::vector<RowScore> scores;
  for (const Document& document : documents) {
    DocumentScore total;
    for (const int32_t id : document) {
      if (id < 0 || id >= vocab) {
        return absl::InvalidArgumentError(
            absl::StrCat("token id ", id, " is not in the model's vocabulary of ", vocab));
      }
    }
    for (const Document& part : Windows(document, options, window)) {
      if (options.keep_going) {
        if (absl::Status status = options.keep_going(); !status.ok()) return status;
      }
      const int32_t scored = static_cast<int32_t>(part.size()) - 1;
      for (int32_t start = 0; start < scored; start += chunk_rows) {
        const int32_t count = std::min(chunk_rows, scored - start);
        auto logits = (*scorer)->Logits(part, start, count);
        if (!logits.ok()) return logits.status();
        const float* reference_logits = nullptr;
        if (reference_scorer != nullptr) {
          auto got = reference_scorer->Logits(part, start, count);
          if (!got.ok()) return got.status();
          reference_logits = *got;
        }
        const std::span<const int32_t> targets =
            std::span(part).subspan(static_cast<size_t>(start) + 1, static_cast<size_t>(count));
        ScoreRows(*logits, reference_logits, vocab, targets, &scores);
        for (const RowScore& score : scores) {
          total.nll += score.nll;
          total.reference_nll += score.reference_nll;
          total.kl += score.kl;
          total.same_top += score.same_top && reference != nullptr ? 1 : 0;
        }
        total.predictions += count;
      }
    }
    predictions += total.predictions;
    evaluation.documents.push_back(total);
    if (options.max_predictions > 0 && predictions >= options.max_predictions) break;
  }
  if (!std::isfinite(evaluation.nll())) {
    return absl::InternalError("the model gives logits that are not finite");
  }
  if (predictions == 0) return absl::InvalidArgumentError("the text holds no token to predict");
  return evaluation;
}

}  // namespace nibble
