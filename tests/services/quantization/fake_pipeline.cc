// SPDX-License-Identifier: Apache-2.0
#include "tests/services/quantization/fake_pipeline.h"

#include <algorithm>
#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "engine/artifact/sha256.h"
#include "nibble/v1/quantization.pb.h"
#include "services/quantization/job_spec.h"
#include "services/quantization/status_macros.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

absl::Status WriteSynced(FileSystem& fs, const std::string& path, const std::string& bytes) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<WritableFile> file, fs.Create(path));
  NIBBLE_RETURN_IF_ERROR(file->Append(bytes));
  NIBBLE_RETURN_IF_ERROR(file->Sync());
  return file->Close();
}

}  // namespace

absl::StatusOr<PipelineResult> RunFakePipeline(const FakePipelineOptions& options,
                                               const PipelineSpec& spec, FileSystem& fs,
                                               const std::string& work_dir,
                                               const std::string& checkpoint_dir, JobHost& host) {
  // What earlier attempts finished: the newest checkpoint whose file is whole.
  std::string text = spec.model_digest;
  int32_t done = 0;
  for (const PipelineCheckpoint& checkpoint : host.Checkpoints()) {
    if (checkpoint.basis.tier != options.tier) continue;
    const std::string bytes = ReadFile(checkpoint_dir + "/" + checkpoint.files.at(0));
    if (Sha256Hex(bytes) != checkpoint.sha256.at(0)) continue;
    text = bytes;
    done = checkpoint.blocks_done;
  }
  PipelineResult result;
  result.resumed_at = done;
  const std::string attempt = work_dir.substr(checkpoint_dir.size() + 1);
  for (int32_t block = done; block < options.blocks; ++block) {
    if (result.blocks_computed == options.fails_after) return absl::InternalError("told to fail");
    std::this_thread::sleep_for(options.block_time);
    NIBBLE_RETURN_IF_ERROR(host.KeepGoing());
    text = absl::StrCat(text, "\nblock ", block);
    const std::string name = absl::StrCat("block-", block);
    NIBBLE_RETURN_IF_ERROR(WriteSynced(fs, absl::StrCat(work_dir, "/", name), text));
    NIBBLE_RETURN_IF_ERROR(fs.SyncDirectory(work_dir));
    NIBBLE_RETURN_IF_ERROR(host.Commit({block + 1,
                                        {absl::StrCat(attempt, "/", name)},
                                        {Sha256Hex(text)},
                                        {spec.model_digest, options.tier}}));
    host.Report({"quantize", block + 1, options.blocks, (block + 1.0) / options.blocks, name});
    host.Log(absl::StrCat("computed ", name));
    ++result.blocks_computed;
  }
  NIBBLE_RETURN_IF_ERROR(host.KeepGoing());
  result.artifact_dir = work_dir + "/artifact";
  NIBBLE_RETURN_IF_ERROR(fs.CreateDirectory(result.artifact_dir));
  NIBBLE_RETURN_IF_ERROR(WriteSynced(fs, result.artifact_dir + "/weights", text));
  NIBBLE_RETURN_IF_ERROR(WriteSynced(fs, result.artifact_dir + "/report.html", "<p>fine</p>"));
  NIBBLE_RETURN_IF_ERROR(fs.SyncDirectory(result.artifact_dir));
  NIBBLE_RETURN_IF_ERROR(fs.SyncDirectory(work_dir));
  result.digest = Sha256Hex(text);
  result.artifact_bytes = static_cast<int64_t>(text.size());
  result.source_digest = spec.model_digest;
  result.report = {{"bits_per_weight", 4.25},
                   {"evaluation",
                    {{"baseline", {{"perplexity", 10.0}}},
                     {"fast", {{"perplexity", 10.5}, {"kl", 0.02}, {"same_top", 0.9}}}}}};
  result.gate_passed = options.gate_passed;
  if (!options.gate_passed) result.gate_message = "kl 0.02 > 0.01";
  return result;
}

std::string FakeJobSpec() {
  v1::JobSpec spec;
  spec.set_model_path("model");
  spec.set_recipe("rtn");
  return CompleteJobSpec(spec)->SerializeAsString();
}

void MakeFakeModel(const std::string& root, const std::string& contents) {
  std::filesystem::create_directories(root + "/model");
  WriteFile(root + "/model/config.json", "{}");
  WriteFile(root + "/model/model.safetensors", contents);
}

}  // namespace nibble
