// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/block_ledger.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "engine/artifact/mapped_file.h"
#include "engine/artifact/safetensors_writer.h"
#include "engine/artifact/sha256.h"
#include "engine/base/cat.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr int64_t kRowsAtOnce = 1024;
constexpr const char* kQuantized = "quantized";
constexpr const char* kPlain = "plain";

std::string Numbered(std::string_view prefix, std::string_view kind, int32_t number) {
  char digits[16];
  std::snprintf(digits, sizeof(digits), "%05d", number);
  return Cat(prefix, "/", kind, "-", digits, ".safetensors");
}

Json ErrorsToJson(const std::vector<ModuleError>& errors) {
  Json list = Json::array();
  for (const ModuleError& e : errors) {
    list.push_back({e.module, e.scheme, e.relative_error, e.of_output, e.outliers});
  }
  return list;
}

std::vector<ModuleError> ErrorsFromJson(const Json& list) {
  std::vector<ModuleError> errors;
  if (!list.is_array()) return errors;
  for (const Json& e : list) {
    if (!e.is_array() || e.size() != 5 || !e[0].is_string() || !e[1].is_string() ||
        !e[2].is_number() || !e[3].is_boolean() || !e[4].is_number_integer()) {
      continue;
    }
    errors.push_back({e[0].get<std::string>(), e[1].get<std::string>(), e[2].get<double>(),
                      e[3].get<bool>(), e[4].get<int64_t>()});
  }
  return errors;
}

absl::StatusOr<std::pair<std::unique_ptr<MappedFile>, SafetensorsHeader>> MapTensors(
    const std::string& path) {
  absl::StatusOr<std::unique_ptr<MappedFile>> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader((*file)->bytes(), path);
  if (!header.ok()) return header.status();
  return std::pair(*std::move(file), *std::move(header));
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockLedger>> BlockLedger::Open(
    FileSystem& fs, const std::string& work_dir, const std::string& checkpoint_dir,
    const CheckpointBasis& basis, int32_t layers, bool calibrated, JobHost& host) {
  const std::filesystem::path relative =
      std::filesystem::path(work_dir).lexically_normal().lexically_relative(
          std::filesystem::path(checkpoint_dir).lexically_normal());
  if (relative.empty() || *relative.begin() == "..") {
    return absl::InvalidArgumentError(
        Cat("work_dir ", work_dir, " must lie beneath checkpoint_dir ", checkpoint_dir));
  }
  std::unique_ptr<BlockLedger> ledger(new BlockLedger(fs, host));
  ledger->directory_ = Cat(work_dir, "/blocks");
  ledger->prefix_ = (relative / "blocks").lexically_normal().string();
  ledger->checkpoint_dir_ = checkpoint_dir;
  ledger->basis_ = basis;
  ledger->layers_ = layers;
  ledger->calibrated_ = calibrated;
  ledger->TakeCheckpoints(host.Checkpoints());
  ledger->FindResumePoint();
  return ledger;
}

bool BlockLedger::Verified(const PipelineCheckpoint& checkpoint, size_t file) {
  const std::string& name = checkpoint.files[file];
  const auto known = verified_.find(name);
  if (known != verified_.end()) return known->second;
  absl::StatusOr<std::string> digest = Sha256OfFile(Cat(checkpoint_dir_, "/", name));
  const bool good = digest.ok() && *digest == checkpoint.sha256[file];
  if (!good) {
    host_.Log(Cat("checkpoint file ", name, " cannot be used: ",
                  digest.ok() ? std::string("its sha256 is not the recorded one")
                              : std::string(digest.status().message())));
  }
  verified_[name] = good;
  return good;
}

void BlockLedger::TakeCheckpoints(std::vector<PipelineCheckpoint> named) {
  const PipelineCheckpoint* other = nullptr;
  for (PipelineCheckpoint& checkpoint : named) {
    if (checkpoint.basis == basis_) {
      usable_.push_back(std::move(checkpoint));
    } else {
      other = &checkpoint;
    }
  }
  if (!usable_.empty() || other == nullptr) return;
  const std::string& tier = other->basis.tier;  // "" if an older program committed it
  host_.Log(!tier.empty() && tier != basis_.tier
                ? Cat("starting over: the finished blocks were computed on ", tier,
                      ", this attempt runs on ", basis_.tier, ", and results differ between them")
                : std::string("starting over: the finished blocks belong to another recipe, "
                              "source, calibration set or version of this program"));
}

bool BlockLedger::FindActivations(int32_t done) {
  for (auto it = usable_.rbegin(); it != usable_.rend(); ++it) {
    if (it->blocks_done != done || it->files.size() != 2 || it->sha256.size() != 2) continue;
    if (!Verified(*it, 1)) continue;
    activations_[done] = it->files[1];
    return true;
  }
  return false;
}

void BlockLedger::FindResumePoint() {
  std::map<int32_t, std::string> block_files;  // by block: the newest whole one
  for (auto it = usable_.rbegin(); it != usable_.rend(); ++it) {
    const int32_t done = it->blocks_done;
    if (done < 1 || done > layers_ || it->files.empty() || it->files.size() > 2 ||
        it->files.size() != it->sha256.size()) {
      continue;
    }
    if (it->files.size() == 2) activations_.emplace(done, it->files[1]);
    if (!block_files.contains(done - 1) && Verified(*it, 0)) block_files[done - 1] = it->files[0];
  }
  int32_t done = 0;
  while (block_files.contains(done)) ++done;
  while (done > 0 && calibrated_ && done < layers_ && !FindActivations(done)) --done;
  for (int32_t block = 0; block < done; ++block) blocks_.push_back(block_files[block]);
  if (blocks_done() > 0) {
    host_.Log(Cat("going on after block ", blocks_done(), " of ", layers_));
  }
}

absl::Status BlockLedger::Restore(ActivationStore& quantized, ActivationStore& plain) const {
  const std::string path = Cat(checkpoint_dir_, "/", activations_.at(blocks_done()));
  auto mapped = MapTensors(path);
  if (!mapped.ok()) return mapped.status();
  for (const auto& [name, store] :
       {std::pair<std::string_view, ActivationStore*>(kQuantized, &quantized), {kPlain, &plain}}) {
    const auto& tensors = mapped->second.tensors;
    const auto it = std::find_if(tensors.begin(), tensors.end(),
                                 [n = name](const SafetensorsEntry& e) { return e.name == n; });
    if (it == tensors.end() || it->dtype != DType::kF32 ||
        it->shape != std::vector<int64_t>{store->rows(), store->cols()}) {
      return absl::DataLossError(
          Cat(path, ": tensor ", name, " is not F32 [", store->rows(), ", ", store->cols(), "]"));
    }
    const char* data = mapped->first->bytes().data() + mapped->second.data_start + it->begin;
    const absl::Status status =
        store->Write(0, store->rows(), reinterpret_cast<const float*>(data));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status BlockLedger::Commit(const QuantizedBlock& block, double drift,
                                 const ActivationStore* quantized, const ActivationStore* plain) {
  if (!made_directory_) {
    if (absl::Status status = fs_.CreateDirectory(directory_);
        !status.ok() && status.code() != absl::StatusCode::kAlreadyExists) {
      return status;
    }
    const std::string parent = std::filesystem::path(directory_).parent_path().string();
    if (absl::Status status = fs_.SyncDirectory(parent); !status.ok()) return status;
    made_directory_ = true;
  }
  const int32_t index = blocks_done();
  PipelineCheckpoint checkpoint;
  checkpoint.blocks_done = index + 1;
  checkpoint.basis = basis_;

  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string_view> bytes;
  std::map<std::string, std::string> vectors;
  for (const auto& [module, weight] : block.weights) {
    for (int i = 0; i < weight.tensors().count; ++i) {
      const StoredTensor& tensor = weight.tensors().items[static_cast<size_t>(i)];
      SafetensorsEntry& entry = entries.emplace_back();
      entry.name = Cat(module, tensor.suffix);
      entry.dtype = tensor.dtype;
      entry.shape.assign(tensor.shape.begin(), tensor.shape.begin() + tensor.rank);
      bytes[entry.name] = {reinterpret_cast<const char*>(weight.bytes(i).data()),
                           weight.bytes(i).size()};
    }
  }
  for (const auto& [name, vector] : block.vectors) {
    SafetensorsEntry& entry = entries.emplace_back();
    entry.name = name;
    entry.dtype = vector.dtype;
    entry.shape = {static_cast<int64_t>(vector.values.size())};
    vectors[name] = StoredBytes(vector);
    bytes[name] = vectors[name];
  }
  const std::string block_name = Numbered(prefix_, "block", index);
  absl::StatusOr<std::unique_ptr<SafetensorsWriter>> writer = SafetensorsWriter::Create(
      fs_, Cat(checkpoint_dir_, "/", block_name), entries,
      {{"errors", ErrorsToJson(block.errors).dump()}, {"drift", Json(drift).dump()}});
  if (!writer.ok()) return writer.status();
  for (const SafetensorsEntry& entry : entries) {
    absl::Status status = (*writer)->Append(entry.name, bytes[entry.name]);
    if (!status.ok()) return status;
  }
  absl::StatusOr<WrittenFile> written = (*writer)->Finish();
  if (!written.ok()) return written.status();
  checkpoint.files.push_back(block_name);
  checkpoint.sha256.push_back(written->sha256);

  if (calibrated_ && index + 1 < layers_) {
    const std::string name = Numbered(prefix_, "activations", index + 1);
    absl::StatusOr<std::string> digest = WriteActivations(name, *quantized, *plain);
    if (!digest.ok()) return digest.status();
    checkpoint.files.push_back(name);
    checkpoint.sha256.push_back(*digest);
    activations_[index + 1] = name;
  }
  if (absl::Status status = fs_.SyncDirectory(directory_); !status.ok()) return status;
  if (absl::Status status = host_.Commit(checkpoint); !status.ok()) return status;
  blocks_.push_back(block_name);
  RemoveOldActivations();
  return absl::OkStatus();
}

absl::StatusOr<std::string> BlockLedger::WriteActivations(const std::string& name,
                                                          const ActivationStore& quantized,
                                                          const ActivationStore& plain) const {
  const std::pair<const char*, const ActivationStore*> streams[] = {{kQuantized, &quantized},
                                                                    {kPlain, &plain}};
  std::vector<SafetensorsEntry> entries;
  for (const auto& [stream, store] : streams) {
    SafetensorsEntry& entry = entries.emplace_back();
    entry.name = stream;
    entry.dtype = DType::kF32;
    entry.shape = {store->rows(), store->cols()};
  }
  absl::StatusOr<std::unique_ptr<SafetensorsWriter>> writer =
      SafetensorsWriter::Create(fs_, Cat(checkpoint_dir_, "/", name), std::move(entries));
  if (!writer.ok()) return writer.status();
  for (const auto& [stream, store] : streams) {
    std::vector<float> rows(static_cast<size_t>(kRowsAtOnce * store->cols()));
    for (int64_t first = 0; first < store->rows(); first += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, store->rows() - first);
      absl::Status status = store->Read(first, count, rows.data());
      if (!status.ok()) return status;
      status =
          (*writer)->Append(stream, {reinterpret_cast<const char*>(rows.data()),
                                     static_cast<size_t>(count * store->cols()) * sizeof(float)});
      if (!status.ok()) return status;
    }
  }
  absl::StatusOr<WrittenFile> written = (*writer)->Finish();
  if (!written.ok()) return written.status();
  return written->sha256;
}

void BlockLedger::RemoveOldActivations() {
  for (auto it = activations_.begin(); it != activations_.end();) {
    if (it->first > blocks_done() - 2) break;
    const std::string path = Cat(checkpoint_dir_, "/", it->second);
    const absl::Status status = fs_.Remove(path);
    if (!status.ok() && status.code() != absl::StatusCode::kNotFound) {
      host_.Log(Cat("cannot remove superseded activations: ", status.message()));
    }
    it = activations_.erase(it);
  }
}

std::string BlockLedger::BlockPath(int32_t block) const {
  return Cat(checkpoint_dir_, "/", blocks_[static_cast<size_t>(block)]);
}

absl::StatusOr<FinishedBlock> BlockLedger::Read(int32_t block) const {
  auto mapped = MapTensors(BlockPath(block));
  if (!mapped.ok()) return mapped.status();
  FinishedBlock result;
  result.header = std::move(mapped->second);
  const auto& metadata = result.header.metadata;
  if (const auto it = metadata.find("errors"); it != metadata.end()) {
    result.errors = ErrorsFromJson(Json::parse(it->second, nullptr, /*allow_exceptions=*/false));
  }
  if (const auto it = metadata.find("drift"); it != metadata.end()) {
    const Json drift = Json::parse(it->second, nullptr, /*allow_exceptions=*/false);
    if (drift.is_number()) result.drift = drift.get<double>();
  }
  return result;
}

}  // namespace nibble
