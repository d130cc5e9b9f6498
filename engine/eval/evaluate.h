// SPDX-License-Identifier: Apache-2.0
// Perplexity of a loaded model, and how far its predictions are from another's.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "engine/eval/documents.h"
#include "engine/eval/evaluation.h"
#include "engine/model/decoder.h"

namespace nibble {

// Scores `documents` with `model`; with `reference` also compares with it (same vocabulary). Sums
// in document order, in double. Errors as PlanWindows and ScoreSum.
absl::StatusOr<Evaluation> Evaluate(Decoder& model, Decoder* reference,
                                    const std::vector<Document>& documents, const KvFormat& kv,
                                    const EvaluateOptions& options);

}  // namespace nibble
