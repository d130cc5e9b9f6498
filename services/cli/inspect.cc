// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "engine/artifact/checkpoint.h"
#include "engine/artifact/manifest.h"
#include "engine/base/cat.h"
#include "engine/model/config.h"
#include "services/cli/client.h"
#include "services/cli/exit_codes.h"
#include "services/cli/verbs.h"
#include "services/common/open_model.h"

namespace nibble {
namespace {

struct Options {
  std::string path;
  bool tensors = false;
  bool verify = false;
  bool json = false;
};

absl::StatusOr<nlohmann::json> Run(const Options& options) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(options.path);
  if (!checkpoint.ok()) return checkpoint.status();
  absl::StatusOr<DecoderConfig> config = ParseDecoderConfig((*checkpoint)->config());
  if (!config.ok()) return config.status();

  const std::vector<ModuleInfo> modules = (*checkpoint)->modules();
  const WeightBits bits = CountBits(modules);
  std::map<std::string, int64_t> schemes;  // weights stored in each
  int64_t weights = 0;
  for (const ModuleInfo& module : modules) {
    schemes[module.scheme] += module.rows * module.cols;
    weights += module.rows * module.cols;
  }
  const std::vector<TensorInfo> tensors = (*checkpoint)->tensors();
  int64_t bytes = 0;
  for (const TensorInfo& tensor : tensors) bytes += tensor.bytes;

  nlohmann::json result = {{"path", (*checkpoint)->path()},
                           {"family", config->family},
                           {"scheme", MainScheme(**checkpoint)},
                           {"schemes", schemes},
                           {"weights", weights},
                           {"bytes", bytes},
                           {"bits_per_weight", bits.total},
                           {"quantized_bits_per_weight", bits.quantized},
                           {"layers", config->layers},
                           {"hidden", config->hidden},
                           {"intermediate", config->intermediate},
                           {"heads", config->heads},
                           {"kv_heads", config->kv_heads},
                           {"head_dim", config->head_dim},
                           {"vocabulary", config->vocab},
                           {"max_context", config->max_positions},
                           {"tied_head", config->tied_head}};
  absl::StatusOr<Manifest> manifest = ReadManifest(options.path);
  if (manifest.ok()) {
    absl::StatusOr<std::string> digest =
        options.verify ? VerifyArtifact(options.path) : ArtifactDigest(options.path);
    if (!digest.ok()) return digest.status();
    result["digest"] = *digest;
    result["kv_format"] = manifest->kv_format;
    result["recipe"] = manifest->recipe;
    result["source_digest"] = manifest->source_digest;
  } else if (!absl::IsNotFound(manifest.status())) {
    return manifest.status();
  } else if (options.verify) {
    return absl::FailedPreconditionError(
        Cat("--verify: ", options.path, " has no nibble.json, so there is nothing to verify"));
  }
  if (options.tensors) {
    nlohmann::json rows = nlohmann::json::array();
    for (const TensorInfo& tensor : tensors) {
      rows.push_back({{"name", tensor.name},
                      {"dtype", tensor.dtype == DType::kNone ? std::string_view("block")
                                                             : SafetensorsName(tensor.dtype)},
                      {"shape", tensor.shape},
                      {"bytes", tensor.bytes}});
    }
    result["tensors"] = std::move(rows);
  }
  return result;
}

void Print(const nlohmann::json& result) {
  for (const char* field : {"path",         "digest",          "family",
                            "scheme",       "schemes",         "weights",
                            "bytes",        "bits_per_weight", "quantized_bits_per_weight",
                            "kv_format",    "layers",          "hidden",
                            "intermediate", "heads",           "kv_heads",
                            "head_dim",     "vocabulary",      "max_context",
                            "tied_head",    "source_digest"}) {
    if (!result.contains(field)) continue;
    const nlohmann::json& value = result[field];
    std::printf("%-26s %s\n", field,
                value.is_string() ? value.get<std::string>().c_str() : value.dump().c_str());
  }
  if (!result.contains("tensors")) return;
  std::printf("\n%12s  %-5s %-18s %s\n", "bytes", "type", "shape", "tensor");
  for (const nlohmann::json& row : result["tensors"]) {
    std::printf("%12lld  %-5s %-18s %s\n", static_cast<long long>(row["bytes"].get<int64_t>()),
                row["dtype"].get<std::string>().c_str(), row["shape"].dump().c_str(),
                row["name"].get<std::string>().c_str());
  }
}

int RunInspect(const Options& options) {
  absl::StatusOr<nlohmann::json> result = Run(options);
  if (!result.ok()) return Fail("inspect", result.status());
  if (options.json) {
    std::printf("%s\n",
                result->dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    Print(*result);
  }
  return kExitOk;
}

}  // namespace

RunVerb AddInspect(CLI::App& command) {
  auto options = std::make_shared<Options>();
  command.add_option("path", options->path, "model directory, artifact or GGUF file")->required();
  command.add_flag("--tensors", options->tensors, "a row for each stored tensor");
  command.add_flag("--verify", options->verify, "compare every file with nibble.json");
  command.add_flag("--json", options->json, "one JSON object");
  command.footer(
      "Works on local files, without a server.\n\n"
      "Examples:\n"
      "  nibble inspect my-int4\n"
      "  nibble inspect my-int4 --tensors --verify --json");
  return [options] { return RunInspect(*options); };
}

}  // namespace nibble
