// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/assemble.h"

#include <utility>
#include <vector>

#include "engine/artifact/manifest.h"
#include "engine/base/cat.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr const char* kNorm = "model.norm.weight";

Platform PlatformOf(const std::string& tier) {
  const size_t slash = tier.find('/');
  Platform platform;
  platform.device = tier.substr(0, slash);
  if (slash != std::string::npos) platform.isa = tier.substr(slash + 1);
  return platform;
}

void AddSize(const ModuleWeight& module, Report& report) {
  const int64_t bytes =
      StoredTensors(*module.scheme, module.rows, module.cols, module.outliers).bytes();
  const int64_t weights = module.rows * module.cols;
  report.total_bytes += bytes;
  report.total_weights += weights;
  if (!module.scheme->quantized()) return;
  report.quantized_bytes += bytes;
  report.quantized_weights += weights;
}

// Outlier features of a module of a finished block.
int64_t OutliersOf(const SafetensorsHeader& block, const std::string& module) {
  const std::string name = Cat(module, ".outlier_features");
  for (const SafetensorsEntry& tensor : block.tensors) {
    if (tensor.name == name) return tensor.shape[0];
  }
  return 0;
}

// Embedding, blocks in order, final norm, head: the order of the forward pass.
absl::StatusOr<ArtifactSpec> Plan(const AssemblyInputs& inputs, Report& report) {
  const DecoderConfig& config = *inputs.config;
  ArtifactSpec spec;
  report.modules.clear();
  auto add = [&](const StoredPart& part) {
    for (SafetensorsEntry& entry : WeightEntries(part.module)) {
      spec.tensors.push_back(std::move(entry));
    }
    spec.modules.push_back(part.module);
    report.modules.push_back(part.error);
  };
  add(inputs.parts->embedding);
  for (int32_t layer = 0; layer < config.layers; ++layer) {
    absl::StatusOr<FinishedBlock> block = inputs.ledger->Read(layer);
    if (!block.ok()) return block.status();
    for (const SafetensorsEntry& tensor : block->header.tensors) spec.tensors.push_back(tensor);
    const int64_t heads = int64_t{config.heads} * config.head_dim;
    const int64_t kv_heads = int64_t{config.kv_heads} * config.head_dim;
    const std::pair<const char*, std::pair<int64_t, int64_t>> shapes[] = {
        {"self_attn.q_proj", {heads, config.hidden}},
        {"self_attn.k_proj", {kv_heads, config.hidden}},
        {"self_attn.v_proj", {kv_heads, config.hidden}},
        {"self_attn.o_proj", {config.hidden, heads}},
        {"mlp.gate_proj", {config.intermediate, config.hidden}},
        {"mlp.up_proj", {config.intermediate, config.hidden}},
        {"mlp.down_proj", {config.hidden, config.intermediate}},
    };
    for (const auto& [name, shape] : shapes) {
      const std::string module = BlockModule(layer, name);
      spec.modules.push_back({module, FindScheme(SchemeFor(inputs.spec->recipe, module)),
                              shape.first, shape.second, OutliersOf(block->header, module)});
    }
    report.modules.insert(report.modules.end(), block->errors.begin(), block->errors.end());
    if (report.calibration_tokens > 0) report.drift.push_back(block->drift);
  }
  SafetensorsEntry norm;
  norm.name = kNorm;
  norm.dtype = inputs.parts->norm.dtype;
  norm.shape = {static_cast<int64_t>(inputs.parts->norm.values.size())};
  spec.tensors.push_back(norm);
  if (inputs.parts->head.has_value()) add(*inputs.parts->head);
  for (const ModuleWeight& module : spec.modules) AddSize(module, report);

  spec.source = inputs.spec->model_path;
  spec.recipe = inputs.spec->recipe.ToJson();
  spec.source_digest = report.source_digest;
  spec.calibration_digest = report.calibration_digest;
  spec.kv_format = inputs.spec->recipe.kv_format;
  spec.platform = PlatformOf(report.tier);
  return spec;
}

}  // namespace

absl::StatusOr<ArtifactSummary> Assemble(const AssemblyInputs& inputs, FileSystem& fs,
                                         const std::string& directory, JobHost& host,
                                         Report& report) {
  const auto keep_going = [&host] { return host.KeepGoing(); };
  absl::StatusOr<ArtifactSpec> spec = Plan(inputs, report);
  if (!spec.ok()) return spec.status();
  if (absl::Status status = fs.RemoveTree(directory); !status.ok()) return status;
  if (absl::Status status = fs.CreateDirectory(directory); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<ArtifactWriter>> writer =
      ArtifactWriter::Create(fs, directory, *std::move(spec));
  if (!writer.ok()) return writer.status();
  absl::Status status = (*writer)->AppendFile(inputs.parts->embedding.path, keep_going);
  if (!status.ok()) return status;
  for (int32_t layer = 0; layer < inputs.config->layers; ++layer) {
    status = (*writer)->AppendFile(inputs.ledger->BlockPath(layer), keep_going);
    if (!status.ok()) return status;
  }
  status = (*writer)->Append(kNorm, StoredBytes(inputs.parts->norm));
  if (!status.ok()) return status;
  if (inputs.parts->head.has_value()) {
    status = (*writer)->AppendFile(inputs.parts->head->path, keep_going);
    if (!status.ok()) return status;
  }
  absl::StatusOr<ArtifactSummary> summary = (*writer)->Finish();
  if (!summary.ok()) return summary.status();
  absl::StatusOr<std::string> digest = VerifyArtifact(directory, keep_going);
  if (!digest.ok()) return digest.status();
  if (*digest != summary->digest) {
    return absl::DataLossError(
        Cat(directory, ": read back with digest ", *digest, ", written with ", summary->digest));
  }
  return summary;
}

absl::Status WriteReport(const Report& report, FileSystem& fs, const std::string& directory) {
  const Json run = {{"seconds", report.seconds},
                    {"peak_memory_bytes", report.peak_memory_bytes},
                    {"resumed_at", report.resumed_at}};
  const std::pair<const char*, std::string> files[] = {
      {"report.json", report.ToJson().dump(2) + "\n"},
      {"report.html", report.ToHtml()},
      {"run.json", run.dump(2) + "\n"}};
  for (const auto& [name, text] : files) {
    absl::StatusOr<WrittenFile> written = WriteWholeFile(fs, Cat(directory, "/", name), text);
    if (!written.ok()) return written.status();
  }
  return fs.SyncDirectory(directory);
}

}  // namespace nibble
