// SPDX-License-Identifier: Apache-2.0
// Perplexity, and how far one model's predictions are from another's.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/eval/documents.h"
#include "engine/model/decoder.h"

namespace nibble {

struct DocumentScore {
  double nll = 0;            // summed over predictions, nats
  double reference_nll = 0;  // the reference's; 0 without one
  double kl = 0;             // summed KL(reference || model), nats; 0 without a reference
  int64_t same_top = 0;      // predictions whose most probable token agrees with the reference's
  int64_t predictions = 0;   // every token after the first of a window
};

struct Evaluation {
  std::vector<DocumentScore> documents;
  int64_t predictions() const;
  double nll() const;         // nats per predicted token
  double perplexity() const;  // exp(nll)
  double reference_nll() const;
  double kl() const;        // nats per predicted token
  double same_top() const;  // fraction
};

struct EvaluateOptions {
  int64_t max_tokens = 0;  // cut every document to this many tokens, BOS included (`nibble eval
                           // --max-tokens`); 0 = whole
  int64_t max_predictions = 0;  // stop after the document that reaches this many; 0 = all documents
  int32_t window =
      0;  // tokens seen at once; longer documents are cut into consecutive windows, each restarted
          // with the document's first token if that is the BOS; 0 = the model's max_context
  int32_t bos_id = -1;  // -1: windows are not restarted with a BOS
  std::function<absl::Status()>
      keep_going;  // checked between windows; an error ends the evaluation with it
};

// Scores `documents` with `model`; with `reference` also compares with it (same vocabulary). Sums
// in document order, in double.
absl::StatusOr<Evaluation> Evaluate(Decoder& model, Decoder* reference,
                                    const std::vector<Document>& documents, const KvFormat& kv,
                                    const EvaluateOptions& options);

}  // namespace nibble
