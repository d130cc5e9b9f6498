// SPDX-License-Identifier: Apache-2.0
// Reads evaluation and calibration text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble {

// One document: token ids with one BOS at the front (if the model has one).
using Document = std::vector<int32_t>;

// A `.json` file holds an array of strings, a `.jsonl` file one object per line with "text",
// "messages" (rendered with the model's chat template) or "ids"; anything else is plain text and
// one document. InvalidArgument names file, line and field. Files up to `max_bytes`.
absl::StatusOr<std::vector<Document>> ReadDocuments(const std::string& path,
                                                    const Tokenizer& tokenizer,
                                                    int64_t max_bytes = int64_t{1} << 30);

struct Calibration {
  std::vector<Document> samples;
  std::vector<Document> rest;  // the text behind the last sample; a document that was cut goes on
};

// Cuts documents into calibration samples of `length` tokens: documents are joined in order of the
// file where they are shorter than a sample, every sample starts with one BOS, and the first
// `samples` of them are taken. InvalidArgument if there is less text than one sample.
absl::StatusOr<Calibration> CalibrationSamples(const std::vector<Document>& documents,
                                               const Tokenizer& tokenizer, int32_t samples,
                                               int32_t length);

}  // namespace nibble
