// SPDX-License-Identifier: Apache-2.0
// The last phase of a job: how well the artifact predicts, and whether that passes the gate.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/artifact/checkpoint.h"
#include "engine/eval/documents.h"
#include "engine/model/config.h"
#include "engine/quant/pipeline.h"
#include "engine/quant/report.h"
#include "kernels/backend.h"

namespace nibble {

struct ArtifactEvaluation {
  const PipelineSpec* spec;
  const DecoderConfig* config;  // of the source
  const Checkpoint* source;
  const std::vector<Document>* documents;  // ids lie in the vocabulary
  std::string artifact_dir;
  std::string spill_directory;
  std::function<absl::Status()> keep_going;
  // Fraction of this phase (0..1) and a line about it, after every block.
  std::function<void(double, const std::string&)> progress;
};

// Compares the artifact, in both modes, with its source in exact mode, block by block: one block's
// weights are in memory, whatever the size of the model. Fills the report's figures and decides its
// gate. Errors of the reader, of BlockwiseEvaluator and of keep_going.
absl::Status EvaluateArtifact(const ArtifactEvaluation& inputs, Backend& backend, Report& report);

}  // namespace nibble
