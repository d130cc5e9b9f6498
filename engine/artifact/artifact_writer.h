// SPDX-License-Identifier: Apache-2.0
// Writes an artifact: a Hugging Face directory in the dialect of compressed-tensors, and
// nibble.json. docs/artifact.md describes every file.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/artifact/file_system.h"
#include "engine/artifact/manifest.h"
#include "engine/artifact/safetensors.h"
#include "engine/artifact/safetensors_writer.h"
#include "kernels/scheme.h"

namespace nibble {

inline constexpr int64_t kMaxShardBytes = int64_t{4} << 30;

// The weight of one module as an artifact stores it.
struct ModuleWeight {
  std::string name;  // "model.layers.0.mlp.up_proj"
  const Scheme* scheme = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t outliers = 0;  // outlier features, in schemes that have them
};

// The tensors of a module in the order of StoredTensors(), for a writer's tensor list.
std::vector<SafetensorsEntry> WeightEntries(const ModuleWeight& module);

struct ArtifactSpec {
  std::string source;  // the model that it was made of: config.json, tokenizer and the like
  std::vector<SafetensorsEntry> tensors;  // name, dtype, shape, in the order of Append
  std::vector<ModuleWeight> modules;      // every linear and the embedding; their tensors are in
                                          // `tensors`. No "lm_head": the head is tied.
  nlohmann::json recipe;
  std::string source_digest;
  std::string calibration_digest;  // "" if none was used
  std::string kv_format = "bf16";
  Platform platform;
  int64_t max_shard_bytes = kMaxShardBytes;  // of tensor data; a larger tensor has its own shard
};

struct ArtifactSummary {
  std::string digest;  // ArtifactDigest()
  int64_t bytes = 0;   // of all digested files and nibble.json
  WeightBits bits;
};

// Streams an artifact into a directory. Memory: one tensor at a time, whatever the model.
// Deterministic: same spec and bytes, same files. Not thread-safe. After an error the directory is
// incomplete and the caller removes it. Statuses of the file system (IsDiskFull among them) are
// passed on.
class ArtifactWriter {
 public:
  // `directory` exists and is empty. InvalidArgument if a module's tensors are not in the list as
  // its scheme wants them, or the source's config.json cannot be read.
  static absl::StatusOr<std::unique_ptr<ArtifactWriter>> Create(FileSystem& fs,
                                                                std::string directory,
                                                                ArtifactSpec spec);
  ~ArtifactWriter();

  // The next bytes of a tensor; tensors come in the order of the spec, each in one or more pieces.
  absl::Status Append(std::string_view tensor, std::string_view bytes);

  // Appends every tensor of a safetensors file (a block's checkpoint), in the file's order.
  // `keep_going`, if given, is asked before each tensor.
  absl::Status AppendFile(const std::string& path,
                          const std::function<absl::Status()>& keep_going = nullptr);

  // Writes everything else, syncs all files and the directory. FailedPrecondition if tensors are
  // missing. The undigested files (run.json, report.*) may be added afterwards.
  absl::StatusOr<ArtifactSummary> Finish();

 private:
  struct Shard;
  ArtifactWriter(FileSystem& fs, std::string directory, ArtifactSpec spec);
  absl::Status Plan();
  absl::Status OpenShard();
  absl::Status CloseShard();
  absl::Status WriteIndex();
  absl::Status WriteConfig();
  absl::Status CarryFiles();
  absl::Status WriteTokenizer(const std::string& gguf_path);
  absl::Status Keep(absl::StatusOr<WrittenFile> file);

  FileSystem& fs_;
  const std::string directory_;
  ArtifactSpec spec_;
  nlohmann::json config_;
  std::vector<Shard> shards_;
  size_t shard_ = 0;  // the one that is being written
  std::unique_ptr<SafetensorsWriter> writer_;
  Manifest manifest_;
};

}  // namespace nibble
