// SPDX-License-Identifier: Apache-2.0
// One quantization job: calibrate, transform, round, verify, block by block, resumable after every
// block.
//
// The pipeline knows nothing of stores, leases or processes. Whoever runs it passes a JobHost,
// which makes checkpoints durable facts, hears of progress and may ask it to stop. It writes the
// finished artifact into a directory; publishing it is the caller's.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/artifact/file_system.h"
#include "engine/quant/recipe.h"
#include "kernels/backend.h"

namespace nibble {

// Decides between success and a failed gate. A bound of 0 is "no bound". Both modes (exact, fast)
// must pass.
struct Gate {
  double max_perplexity_ratio = 0;  // quantized / unquantized on the evaluation text, e.g. 1.05
  double max_kl = 0;                // nats per token, e.g. 0.1
  double min_same_top = 0;          // fraction of positions, 0..1
};
// "ppl<=1.05,kl<=0.1,top>=0.9": any subset. InvalidArgument names the part that is wrong.
absl::StatusOr<Gate> ParseGate(std::string_view expression);

struct PipelineSpec {
  std::string model_path;    // directory or GGUF file
  std::string model_digest;  // SourceDigest(model_path), from a caller who took it as this attempt
                             // began, so that it is taken once; "" = the pipeline takes it
  Recipe recipe;
  std::string calibration_path;       // text, .json array of strings, .jsonl ("text" | "messages" |
                                      // "ids"); may be "" if not needed
  int32_t calibration_samples = 128;  // 1..4096
  int32_t calibration_length =
      512;  // tokens of a sample, BOS included; 16..32768, at most the model's context
  std::string eval_path;  // held-out text for report and gate; "" = the text that the calibration
                          // samples leave over. Without any there is no evaluation, nor a gate
  int32_t eval_max_tokens = 16384;
  Gate gate;
  int64_t activation_budget_bytes = int64_t{1}
                                    << 30;  // live activations above it are spilled to work_dir
  int threads = 0;  // of the algorithms (the backend has its own), 0..256; 0 = one for each CPU
                    // that this process may run on. No result depends on it.
};

// What finished blocks were made from and on. Only blocks of one basis go on from each other.
struct CheckpointBasis {
  std::string fingerprint;  // hex sha256 over recipe, source, calibration set and format version
  std::string tier;         // of the backend

  friend bool operator==(const CheckpointBasis&, const CheckpointBasis&) = default;
};

// A finished step that later attempts may start from.
struct PipelineCheckpoint {
  int32_t blocks_done = 0;  // blocks [0, blocks_done) are final
  std::vector<std::string>
      files;  // names relative to checkpoint_dir, written once beneath work_dir, already synced
  std::vector<std::string> sha256;  // hex, per file
  CheckpointBasis basis = {};
};

struct PipelineProgress {
  std::string phase;  // "digest", "calibrate", "quantize", "evaluate", "write", "verify"
  int32_t blocks_done = 0;
  int32_t blocks_total = 0;
  double fraction = 0;  // 0..1 of the whole job
  std::string message;  // e.g. "block 3/8: mlp.down_proj error 1.2e-3"
};

class JobHost {
 public:
  virtual ~JobHost() = default;
  // Checkpoints that the store names, oldest first. The pipeline verifies digests and uses the
  // newest of its own basis that is whole; if all are of another, it starts over and says so in
  // the log.
  virtual std::vector<PipelineCheckpoint> Checkpoints() = 0;
  // Makes a checkpoint count. An error (lease lost, store down) ends the attempt with that status.
  virtual absl::Status Commit(const PipelineCheckpoint& checkpoint) = 0;
  virtual void Report(const PipelineProgress& progress) = 0;
  virtual void Log(std::string_view line) = 0;
  // Ok to go on; Cancelled or Aborted to stop within the block.
  virtual absl::Status KeepGoing() = 0;
};

struct PipelineResult {
  std::string artifact_dir;  // beneath work_dir: complete, synced, verified by reopening it with
                             // the real reader
  std::string
      digest;  // hex sha256 that identifies the artifact: over the digested files, sorted by name
  int64_t artifact_bytes = 0;
  std::string source_digest;
  nlohmann::json report;  // contents of report.json
  bool gate_passed = true;
  std::string gate_message;     // which bound failed, with figures
  int32_t blocks_computed = 0;  // in this attempt
  int32_t resumed_at = 0;       // first block computed in this attempt
};

// Runs the job on `backend` (calibration in CalibrationMode). `work_dir` exists, belongs to this
// attempt and is on the file system where the artifact will be published; checkpoints of earlier
// attempts are read from `checkpoint_dir`. Deterministic: same spec and inputs, same digest,
// whatever the threads, interruptions or attempts. Errors: InvalidArgument (spec, model or data),
// ResourceExhausted (memory, or a full disk: IsDiskFull),
// Cancelled / Aborted from KeepGoing, DataLoss (verification failed).
absl::StatusOr<PipelineResult> RunPipeline(const PipelineSpec& spec, Backend& backend,
                                           FileSystem& fs, const std::string& work_dir,
                                           const std::string& checkpoint_dir, JobHost& host);

}  // namespace nibble
