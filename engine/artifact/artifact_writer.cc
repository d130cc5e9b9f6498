// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/artifact_writer.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <unordered_map>
#include <utility>

#include "engine/artifact/checkpoint.h"
#include "engine/artifact/gguf_model.h"
#include "engine/artifact/gguf_tokenizer.h"
#include "engine/artifact/mapped_file.h"
#include "engine/artifact/quantization_config.h"
#include "engine/artifact/source_files.h"
#include "engine/base/cat.h"
#include "engine/base/read_file.h"
#include "engine/base/status.h"

namespace nibble {
namespace {

using nlohmann::json;

const std::map<std::string, std::string>& Metadata() {
  // transformers reads "format" to choose its framework.
  static const auto* const metadata = new std::map<std::string, std::string>{{"format", "pt"}};
  return *metadata;
}

std::string Pretty(const json& value) {
  return value.dump(2, ' ', true, json::error_handler_t::replace) + "\n";
}

std::string ShardName(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  std::array<char, 64> name{};
  std::snprintf(name.data(), name.size(), "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name.data();
}

absl::Status CheckModules(const ArtifactSpec& spec) {
  std::unordered_map<std::string_view, const SafetensorsEntry*> tensors;
  for (const SafetensorsEntry& tensor : spec.tensors) tensors[tensor.name] = &tensor;
  for (const ModuleWeight& module : spec.modules) {
    for (const SafetensorsEntry& wanted : WeightEntries(module)) {
      const auto found = tensors.find(wanted.name);
      if (found == tensors.end() || found->second->dtype != wanted.dtype ||
          found->second->shape != wanted.shape) {
        return absl::InvalidArgumentError(
            Cat("tensor ", wanted.name, " is not in the artifact's list as scheme ",
                module.scheme->name, " of [", module.rows, ", ", module.cols, "] stores it"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

struct ArtifactWriter::Shard {
  std::string name;
  std::vector<SafetensorsEntry> tensors;
};

std::vector<SafetensorsEntry> WeightEntries(const ModuleWeight& module) {
  std::vector<SafetensorsEntry> entries;
  for (const StoredTensor& part :
       StoredTensors(*module.scheme, module.rows, module.cols, module.outliers)) {
    SafetensorsEntry entry;
    entry.name = Cat(module.name, part.suffix);
    entry.dtype = part.dtype;
    entry.shape.assign(part.shape.begin(), part.shape.begin() + part.rank);
    entries.push_back(std::move(entry));
  }
  return entries;
}

ArtifactWriter::ArtifactWriter(FileSystem& fs, std::string directory, ArtifactSpec spec)
    : fs_(fs), directory_(std::move(directory)), spec_(std::move(spec)) {}
ArtifactWriter::~ArtifactWriter() = default;

absl::StatusOr<std::unique_ptr<ArtifactWriter>> ArtifactWriter::Create(FileSystem& fs,
                                                                       std::string directory,
                                                                       ArtifactSpec spec) {
  if (absl::Status status = CheckModules(spec); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Checkpoint>> source = Checkpoint::Open(spec.source);
  if (!source.ok()) return source.status();
  std::unique_ptr<ArtifactWriter> writer(
      new ArtifactWriter(fs, std::move(directory), std::move(spec)));
  writer->config_ = (*source)->config();
  if (absl::Status status = writer->Plan(); !status.ok()) return status;
  if (absl::Status status = writer->OpenShard(); !status.ok()) return status;
  return writer;
}

// Cuts the list of tensors into shards.
absl::Status ArtifactWriter::Plan() {
  int64_t bytes = 0;
  for (const SafetensorsEntry& tensor : spec_.tensors) {
    absl::StatusOr<int64_t> size = TensorBytes(tensor.name, tensor.dtype, tensor.shape);
    if (!size.ok()) return size.status();
    if (shards_.empty() || (bytes > 0 && bytes + *size > spec_.max_shard_bytes)) {
      shards_.emplace_back();
      bytes = 0;
    }
    bytes += *size;
    shards_.back().tensors.push_back(tensor);
  }
  if (shards_.empty()) return absl::InvalidArgumentError("an artifact needs at least one tensor");
  for (size_t i = 0; i < shards_.size(); ++i) shards_[i].name = ShardName(i, shards_.size());
  return absl::OkStatus();
}

absl::Status ArtifactWriter::OpenShard() {
  const Shard& shard = shards_[shard_];
  absl::StatusOr<std::unique_ptr<SafetensorsWriter>> writer =
      SafetensorsWriter::Create(fs_, Cat(directory_, "/", shard.name), shard.tensors, Metadata());
  if (!writer.ok()) return writer.status();
  writer_ = *std::move(writer);
  return absl::OkStatus();
}

absl::Status ArtifactWriter::CloseShard() {
  absl::Status status = Keep(writer_->Finish());
  writer_.reset();
  return status;
}

absl::Status ArtifactWriter::Append(std::string_view tensor, std::string_view bytes) {
  while (writer_ != nullptr && writer_->complete() && shard_ + 1 < shards_.size()) {
    if (absl::Status status = CloseShard(); !status.ok()) return status;
    ++shard_;
    if (absl::Status status = OpenShard(); !status.ok()) return status;
  }
  if (writer_ == nullptr) {
    return absl::FailedPreconditionError(Cat(directory_, ": the artifact cannot be appended to"));
  }
  return writer_->Append(tensor, bytes);
}

absl::Status ArtifactWriter::AppendFile(const std::string& path,
                                        const std::function<absl::Status()>& keep_going) {
  absl::StatusOr<std::unique_ptr<MappedFile>> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader((*file)->bytes(), path);
  if (!header.ok()) return header.status();
  for (const SafetensorsEntry& tensor : header->tensors) {
    if (keep_going) {
      if (absl::Status status = keep_going(); !status.ok()) return status;
    }
    const std::string_view bytes =
        (*file)->bytes().substr(static_cast<size_t>(header->data_start + tensor.begin),
                                static_cast<size_t>(tensor.end - tensor.begin));
    if (absl::Status status = Append(tensor.name, bytes); !status.ok()) return status;
    (*file)->Release(bytes);
  }
  return absl::OkStatus();
}

absl::StatusOr<ArtifactSummary> ArtifactWriter::Finish() {
  if (writer_ == nullptr || shard_ + 1 != shards_.size()) {
    return absl::FailedPreconditionError(Cat(directory_, ": tensors of the artifact are missing"));
  }
  if (absl::Status status = CloseShard(); !status.ok()) return status;
  if (absl::Status status = WriteIndex(); !status.ok()) return status;
  if (absl::Status status = WriteConfig(); !status.ok()) return status;
  if (absl::Status status = CarryFiles(); !status.ok()) return status;

  std::vector<ModuleInfo> modules;
  for (const ModuleWeight& module : spec_.modules) {
    manifest_.schemes[module.name] = std::string(module.scheme->name);
    modules.push_back(
        {module.name, std::string(module.scheme->name), module.rows, module.cols,
         StoredTensors(*module.scheme, module.rows, module.cols, module.outliers).bytes(),
         module.scheme->quantized()});
  }
  ArtifactSummary summary;
  summary.bits = CountBits(modules);
  manifest_.recipe = spec_.recipe;
  manifest_.source_digest = spec_.source_digest;
  manifest_.calibration_digest = spec_.calibration_digest;
  manifest_.kv_format = spec_.kv_format;
  manifest_.platform = spec_.platform;
  manifest_.bits_per_weight = summary.bits.quantized;
  manifest_.total_bits_per_weight = summary.bits.total;
  for (const WrittenFile& file : manifest_.files) summary.bytes += file.bytes;
  absl::StatusOr<WrittenFile> written =
      WriteWholeFile(fs_, Cat(directory_, "/", kManifestFile), Pretty(ManifestToJson(manifest_)));
  if (!written.ok()) return written.status();
  summary.bytes += written->bytes;
  if (absl::Status status = fs_.SyncDirectory(directory_); !status.ok()) return status;
  absl::StatusOr<std::string> digest = ArtifactDigest(directory_);
  if (!digest.ok()) return digest.status();
  summary.digest = *digest;
  return summary;
}

absl::Status ArtifactWriter::WriteIndex() {
  if (shards_.size() == 1) return absl::OkStatus();
  json map = json::object();
  int64_t total = 0;
  for (const Shard& shard : shards_) {
    for (const SafetensorsEntry& tensor : shard.tensors) {
      map[tensor.name] = shard.name;
      absl::StatusOr<int64_t> bytes = TensorBytes(tensor.name, tensor.dtype, tensor.shape);
      if (!bytes.ok()) return bytes.status();
      total += *bytes;
    }
  }
  const json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  return Keep(WriteWholeFile(fs_, Cat(directory_, "/model.safetensors.index.json"), Pretty(index)));
}

absl::Status ArtifactWriter::WriteConfig() {
  ModuleSchemes schemes;
  for (const ModuleWeight& module : spec_.modules) schemes[module.name] = module.scheme;
  config_["tie_word_embeddings"] = !schemes.contains("lm_head");
  config_["torch_dtype"] = "bfloat16";
  if (config_.contains("dtype")) config_["dtype"] = "bfloat16";  // its name since transformers 5
  config_.erase("quantization_config");
  json quantization = BuildQuantizationConfig(schemes);
  if (!quantization.is_null()) config_["quantization_config"] = std::move(quantization);
  return Keep(WriteWholeFile(fs_, Cat(directory_, "/config.json"), Pretty(config_)));
}

absl::Status ArtifactWriter::CarryFiles() {
  absl::StatusOr<SourceFiles> source = ListSourceFiles(spec_.source);
  if (!source.ok()) return source.status();
  if (source->gguf) return WriteTokenizer(Cat(source->directory, "/", source->names[0]));
  for (const std::string& name : source->names) {
    if (std::find(std::begin(kCarriedFiles), std::end(kCarriedFiles), name) ==
        std::end(kCarriedFiles)) {
      continue;
    }
    absl::StatusOr<std::string> text =
        ReadSmallFile(Cat(source->directory, "/", name), kMaxCarriedBytes);
    if (!text.ok()) return text.status();
    absl::Status status = Keep(WriteWholeFile(fs_, Cat(directory_, "/", name), *text));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// A GGUF file has its tokenizer inside.
absl::Status ArtifactWriter::WriteTokenizer(const std::string& gguf_path) {
  absl::StatusOr<GgufVocab> vocab = ReadGgufVocab(gguf_path);
  if (!vocab.ok()) return vocab.status();
  absl::StatusOr<std::map<std::string, std::string>> files = TokenizerFiles(*vocab);
  if (!files.ok()) {
    return Within(gguf_path, files.status());
  }
  for (const auto& [name, text] : *files) {
    absl::Status status = Keep(WriteWholeFile(fs_, Cat(directory_, "/", name), text));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ArtifactWriter::Keep(absl::StatusOr<WrittenFile> file) {
  if (!file.ok()) return file.status();
  manifest_.files.push_back(*std::move(file));
  return absl::OkStatus();
}

}  // namespace nibble
