// SPDX-License-Identifier: Apache-2.0
#include "engine/eval/evaluate.h"

#include <algorithm>
#include <memory>
#include <span>

#include "engine/base/cat.h"
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
    if (absl::Status status =
            model.backend().Reserve({.rows = rows,
                                     .sequences = 1,
                                     .max_blocks = PrefillBatch::BlocksFor(window),
                                     .heads = model.config().heads,
                                     .head_dim = model.config().head_dim});
        !status.ok()) {
      return status;
    }
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

}  // namespace

absl::StatusOr<Evaluation> Evaluate(Decoder& model, Decoder* reference,
                                    const std::vector<Document>& documents, const KvFormat& kv,
                                    const EvaluateOptions& options) {
  const int64_t vocab = model.config().vocab;
  int32_t window = options.window > 0 ? options.window : model.options().max_context;
  window = std::min(window, model.options().max_context);
  if (reference != nullptr) {
    if (reference->config().vocab != vocab) {
      return absl::InvalidArgumentError(Cat("the reference has a vocabulary of ",
                                            reference->config().vocab, ", the model one of ", vocab,
                                            "; they must be equal"));
    }
    window = std::min(window, reference->options().max_context);
  }
  absl::StatusOr<std::vector<EvaluationWindow>> windows =
      PlanWindows(documents, vocab, window, options);
  if (!windows.ok()) return windows.status();

  auto scorer = Scorer::Make(model, kv, window);
  if (!scorer.ok()) return scorer.status();
  std::unique_ptr<Scorer> reference_scorer;
  int32_t chunk_rows = (*scorer)->chunk_rows();
  if (reference != nullptr) {
    auto made = Scorer::Make(
        *reference, options.reference_kv != nullptr ? *options.reference_kv : ReferenceKvFormat(kv),
        window);
    if (!made.ok()) return made.status();
    reference_scorer = *std::move(made);
    chunk_rows = std::min(chunk_rows, reference_scorer->chunk_rows());
  }

  ScoreSum sum(vocab, reference != nullptr);
  for (const EvaluationWindow& part : *windows) {
    if (options.keep_going) {
      if (absl::Status status = options.keep_going(); !status.ok()) return status;
    }
    const auto scored = static_cast<int32_t>(part.tokens.size()) - 1;
    for (int32_t start = 0; start < scored; start += chunk_rows) {
      const int32_t count = std::min(chunk_rows, scored - start);
      auto logits = (*scorer)->Logits(part.tokens, start, count);
      if (!logits.ok()) return logits.status();
      const float* reference_logits = nullptr;
      if (reference_scorer != nullptr) {
        auto got = reference_scorer->Logits(part.tokens, start, count);
        if (!got.ok()) return got.status();
        reference_logits = *got;
      }
      sum.Add(part.document, *logits, reference_logits,
              std::span(part.tokens)
                  .subspan(static_cast<size_t>(start) + 1, static_cast<size_t>(count)));
    }
  }
  return sum.Finish();
}

}  // namespace nibble
