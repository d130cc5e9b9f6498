// SPDX-License-Identifier: Apache-2.0
// The finished blocks of a job on disk: written once, named by the host, verified before use.
//
// After block i two files are written: blocks/block-IIIII.safetensors with the block's tensors, and
// blocks/activations-IIIII.safetensors with the live activations after it, verbatim (not after the
// last block, nor where nothing is calibrated). They count once the host has committed them.
// Activations are removed as soon as two newer sets are committed: one more than a resume needs, so
// that a damaged file costs one block.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/artifact/file_system.h"
#include "engine/artifact/safetensors.h"
#include "engine/model/activation_store.h"
#include "engine/quant/block_quantizer.h"
#include "engine/quant/pipeline.h"

namespace nibble {

// What a finished block's file says.
struct FinishedBlock {
  SafetensorsHeader header;
  std::vector<ModuleError> errors;
  double drift = 0;  // squared distance of the quantized stream from the float stream after the
                     // block, relative to the latter; 0 without calibration
};

// Not thread-safe.
class BlockLedger {
 public:
  // Verifies what the host names and finds the newest point to go on from. `work_dir` lies beneath
  // `checkpoint_dir`. `calibrated`: whether activations belong to a checkpoint.
  static absl::StatusOr<std::unique_ptr<BlockLedger>> Open(
      FileSystem& fs, const std::string& work_dir, const std::string& checkpoint_dir,
      const CheckpointBasis& basis, int32_t layers, bool calibrated, JobHost& host);

  int32_t blocks_done() const { return static_cast<int32_t>(blocks_.size()); }

  // Fills the streams with the activations after the last finished block; blocks_done() > 0.
  absl::Status Restore(ActivationStore& quantized, ActivationStore& plain) const;

  // Writes, syncs and commits the next block; `quantized` and `plain` are null without calibration.
  absl::Status Commit(const QuantizedBlock& block, double drift, const ActivationStore* quantized,
                      const ActivationStore* plain);

  // The file of a finished block, and what it says.
  std::string BlockPath(int32_t block) const;
  absl::StatusOr<FinishedBlock> Read(int32_t block) const;

 private:
  BlockLedger(FileSystem& fs, JobHost& host) : fs_(fs), host_(host) {}
  // Keeps those of this basis; says in the log if there are only others.
  void TakeCheckpoints(std::vector<PipelineCheckpoint> named);
  void FindResumePoint();
  // Whether whole activations after `done` blocks exist; notes where.
  bool FindActivations(int32_t done);
  bool Verified(const PipelineCheckpoint& checkpoint, size_t file);
  // Returns the file's sha256.
  absl::StatusOr<std::string> WriteActivations(const std::string& name,
                                               const ActivationStore& quantized,
                                               const ActivationStore& plain) const;
  void RemoveOldActivations();

  FileSystem& fs_;
  JobHost& host_;
  std::string directory_;  // where this attempt writes, absolute
  std::string prefix_;     // the same relative to checkpoint_dir
  std::string checkpoint_dir_;
  CheckpointBasis basis_;
  int32_t layers_ = 0;
  bool calibrated_ = false;
  bool made_directory_ = false;
  std::vector<PipelineCheckpoint> usable_;      // what the host named, of this basis
  std::map<std::string, bool> verified_;        // by file name: whether its digest was right
  std::vector<std::string> blocks_;             // names of the block files, by block
  std::map<int32_t, std::string> activations_;  // names of the activation files, by blocks done
};

}  // namespace nibble
