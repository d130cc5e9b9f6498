// SPDX-License-Identifier: Apache-2.0
// What an evaluation reads, and what it finds: windows of documents, scores of logits. Shared by
// the two ways to run a model over them, evaluate.h and blockwise_evaluate.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/eval/documents.h"
#include "kernels/ops.h"

namespace nibble {

struct EvaluateOptions {
  int64_t max_tokens = 0;  // cut every document to this many tokens, BOS included (`nibble eval
                           // --max-tokens`); 0 = whole
  int64_t max_predictions = 0;  // stop after the window that reaches this many; 0 = all documents
  int32_t window =
      0;  // tokens seen at once; longer documents are cut into consecutive windows, each restarted
          // with the document's first token if that is the BOS; 0 = the model's max_context
  int32_t bos_id = -1;                     // -1: windows are not restarted with a BOS
  const KvFormat* reference_kv = nullptr;  // of the reference's cache; null: ReferenceKvFormat
  std::function<absl::Status()>
      keep_going;  // checked between steps; an error ends the evaluation with it; may be empty
};

struct DocumentScore {
  double nll = 0;            // summed over predictions, nats
  double reference_nll = 0;  // the reference's; 0 without one
  double kl = 0;             // summed KL(reference || model), nats; 0 without a reference
  int64_t same_top = 0;      // predictions whose most probable token agrees with the reference's
  // Where they do not agree: how far apart the reference's two highest logits are, at most.
  double miss_gap = 0;
  int64_t predictions = 0;  // every token after the first of a window
};

struct Evaluation {
  std::vector<DocumentScore> documents;
  int64_t predictions() const;
  double nll() const;         // nats per predicted token
  double perplexity() const;  // exp(nll)
  double reference_nll() const;
  double kl() const;        // nats per predicted token
  double same_top() const;  // fraction
  double miss_gap() const;  // the largest of all documents
};

// Tokens that a model sees at once: token i predicts token i + 1.
struct EvaluationWindow {
  size_t document;  // its index
  Document tokens;  // at least 2
};

// The windows of `documents` under `options`, in order, each of at most `size` tokens.
// InvalidArgument if `size` is below 2, an id lies outside [0, vocab) or there is nothing to
// predict.
absl::StatusOr<std::vector<EvaluationWindow>> PlanWindows(const std::vector<Document>& documents,
                                                          int64_t vocab, int32_t size,
                                                          const EvaluateOptions& options);

// The format of the reference's cache where the model's is `kv`: bf16 at least. The yardstick is
// the model as it was before anything was quantized.
const KvFormat& ReferenceKvFormat(const KvFormat& kv);

// Adds up scores, in double and in the order in which they come. Rows are scored on all CPUs, each
// by itself, so neither their number nor the CPUs' shows in the sums. Not thread-safe.
class ScoreSum {
 public:
  ScoreSum(int64_t vocab, bool with_reference) : vocab_(vocab), with_reference_(with_reference) {}

  // The next predictions of a document: logits (targets.size(), vocab) of the model and, with one,
  // of the reference.
  void Add(size_t document, const float* logits, const float* reference,
           std::span<const int32_t> targets);

  // Internal if the model's logits were not finite.
  absl::StatusOr<Evaluation> Finish();

 private:
  struct Row {
    double nll = 0;
    double reference_nll = 0;
    double kl = 0;
    bool same_top = false;
    double miss_gap = 0;
  };
  Row ScoreRow(const float* logits, const float* reference, int32_t target) const;

  const int64_t vocab_;
  const bool with_reference_;
  std::vector<Row> rows_;
  Evaluation sum_;
};

}  // namespace nibble
