// SPDX-License-Identifier: Apache-2.0
#include "services/common/open_model.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>
#include <vector>

#include "engine/artifact/gguf_model.h"
#include "engine/artifact/manifest.h"
#include "engine/artifact/source_files.h"
#include "engine/base/cat.h"

namespace nibble {
namespace {

absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadTokenizer(const std::string& path) {
  absl::StatusOr<SourceFiles> files = ListSourceFiles(path);
  if (!files.ok()) return files.status();
  if (!files->gguf) return Tokenizer::FromDirectory(files->directory);
  absl::StatusOr<GgufVocab> vocab = ReadGgufVocab(files->directory + "/" + files->names.front());
  if (!vocab.ok()) return vocab.status();
  return Tokenizer::FromGguf(*vocab);
}

}  // namespace

absl::StatusOr<OpenedModel> OpenModel(const std::string& path) {
  OpenedModel opened;
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(path);
  if (!checkpoint.ok()) return checkpoint.status();
  opened.checkpoint = *std::move(checkpoint);
  absl::StatusOr<DecoderConfig> config = ParseDecoderConfig(opened.checkpoint->config());
  if (!config.ok()) return config.status();
  opened.config = *std::move(config);
  absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer = LoadTokenizer(path);
  if (!tokenizer.ok()) return tokenizer.status();
  opened.tokenizer = *std::move(tokenizer);
  // A chat model's end of turn often stands in generation_config.json or with the tokenizer alone.
  std::vector<int32_t>& eos = opened.config.eos_ids;
  eos.insert(eos.end(), opened.tokenizer->eos_ids().begin(), opened.tokenizer->eos_ids().end());
  std::sort(eos.begin(), eos.end());
  eos.erase(std::unique(eos.begin(), eos.end()), eos.end());
  return opened;
}

std::string MainScheme(const Checkpoint& checkpoint) {
  std::map<std::string, int64_t> weights;
  for (const ModuleInfo& module : checkpoint.modules()) {
    if (module.name.find(".layers.") == std::string::npos) continue;
    weights[module.scheme] += module.rows * module.cols;
  }
  const auto most =
      std::max_element(weights.begin(), weights.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == weights.end() ? "" : most->first;
}

absl::StatusOr<std::string> KvFormatOf(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(Cat(path, "/", kManifestFile), error)) return "bf16";
  absl::StatusOr<Manifest> manifest = ReadManifest(path);
  if (!manifest.ok()) return manifest.status();
  return manifest->kv_format;
}

}  // namespace nibble
