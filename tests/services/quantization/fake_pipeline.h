// SPDX-License-Identifier: Apache-2.0
// A pipeline that does the least: it has the real one's checkpoints, order of writes and artifact
// directory, and takes milliseconds. The artifact depends on the model's digest and on every block,
// so a lost or doubled block changes its digest.
#pragma once

#include <chrono>
#include <string>

#include "absl/status/statusor.h"
#include "engine/quant/pipeline.h"

namespace nibble {

struct FakePipelineOptions {
  int32_t blocks = 4;
  std::chrono::milliseconds block_time{1};
  bool gate_passed = true;
  std::string tier = "tier-a";
  int32_t fails_after = -1;  // blocks of an attempt, with Internal; -1 = never
};

absl::StatusOr<PipelineResult> RunFakePipeline(const FakePipelineOptions& options,
                                               const PipelineSpec& spec, FileSystem& fs,
                                               const std::string& work_dir,
                                               const std::string& checkpoint_dir, JobHost& host);

// A job's spec for it, on "model" beneath the model root, serialized as the store keeps it.
std::string FakeJobSpec();
// Makes that model: root/model/config.json and root/model/model.safetensors.
void MakeFakeModel(const std::string& root, const std::string& contents = "weights");

}  // namespace nibble
