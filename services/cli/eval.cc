// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/cat.h"
#include "engine/eval/documents.h"
#include "engine/eval/evaluate.h"
#include "kernels/open_device.h"
#include "services/cli/client.h"
#include "services/cli/exit_codes.h"
#include "services/cli/logits_hash.h"
#include "services/cli/verbs.h"
#include "services/common/open_model.h"

namespace nibble {
namespace {

constexpr int32_t kLogitRows = 64;
constexpr int64_t kMaxGgufContext =
    4096;                            // how far --max-tokens stretches the context a GGUF declares
constexpr int32_t kMinContext = 64;  // what the logits hash needs

struct Options {
  std::string model;
  std::string text;
  std::string against;
  std::string kv;
  std::string against_kv;
  int64_t max_tokens = 0;
  int32_t window = 0;
  std::string device = "auto";
  int threads = 0;
  bool exact = false;
  bool batch_invariant = false;
  bool per_document = false;
  bool json = false;
};

absl::StatusOr<std::unique_ptr<Decoder>> LoadDecoder(const OpenedModel& opened, Backend& backend,
                                                     Mode mode, int32_t context) {
  DecoderOptions options;
  options.mode = mode;
  options.max_logit_rows = kLogitRows;
  options.max_rows = kLogitRows;
  options.max_context = std::min(context, opened.config.max_positions);
  return Decoder::Load(backend, opened.config, *opened.checkpoint, options);
}

absl::StatusOr<nlohmann::json> Run(const Options& options) {
  absl::StatusOr<OpenedModel> opened = OpenModel(options.model);
  if (!opened.ok()) return opened.status();
  absl::StatusOr<std::vector<Document>> documents = ReadDocuments(options.text, *opened->tokenizer);
  if (!documents.ok()) return documents.status();
  std::string kv_name = options.kv;
  if (kv_name.empty() && options.exact) kv_name = "f32";
  if (kv_name.empty()) {
    absl::StatusOr<std::string> chosen = KvFormatOf(options.model);
    if (!chosen.ok()) return chosen.status();
    kv_name = *std::move(chosen);
  }
  const KvFormat* kv = FindKvFormat(kv_name);
  if (kv == nullptr) {
    return absl::InvalidArgumentError(
        Cat("--kv is \"", kv_name, "\"; it must be one of ", KvFormatNames()));
  }

  const KvFormat* against_kv = nullptr;
  if (!options.against_kv.empty()) {
    against_kv = FindKvFormat(options.against_kv);
    if (against_kv == nullptr) {
      return absl::InvalidArgumentError(
          Cat("--against-kv is \"", options.against_kv, "\"; it must be one of ", KvFormatNames()));
    }
  }

  // The context_length of a GGUF file is often only what its converter was told; documents that are
  // asked for whole are run past it, as llama.cpp's --ctx-size does.
  if (options.model.ends_with(".gguf") && options.max_tokens <= kMaxGgufContext) {
    opened->config.max_positions =
        std::max(opened->config.max_positions, static_cast<int32_t>(options.max_tokens));
  }
  // No more positions than the longest document needs.
  size_t longest = kMinContext;
  for (const Document& document : *documents) {
    size_t length = document.size();
    if (options.max_tokens > 0) length = std::min(length, static_cast<size_t>(options.max_tokens));
    longest = std::max(longest, length);
  }
  const auto context = static_cast<int32_t>(
      std::min<size_t>(longest, static_cast<size_t>(opened->config.max_positions)));

  const Mode mode = options.exact ? Mode::kExact : Mode::kFast;
  absl::StatusOr<OpenedDevice> device =
      OpenDevice(options.device, {.threads = options.threads, .tier = ""},
                 {.batch_invariant = options.batch_invariant});
  if (!device.ok()) return device.status();
  Backend& backend = *device->backend;
  absl::StatusOr<std::unique_ptr<Decoder>> model = LoadDecoder(*opened, backend, mode, context);
  if (!model.ok()) return model.status();
  // The yardstick runs on the CPU, whatever is measured.
  std::unique_ptr<Backend> reference_backend;
  std::unique_ptr<Decoder> reference;
  if (!options.against.empty()) {
    if (device->gpu) {
      absl::StatusOr<std::unique_ptr<Backend>> cpu =
          MakeCpuBackend({.threads = options.threads, .tier = ""});
      if (!cpu.ok()) return cpu.status();
      reference_backend = *std::move(cpu);
    }
    absl::StatusOr<OpenedModel> other = OpenModel(options.against);
    if (!other.ok()) return other.status();
    // The yardstick is exact, as in a job's report.
    absl::StatusOr<std::unique_ptr<Decoder>> loaded = LoadDecoder(
        *other, reference_backend != nullptr ? *reference_backend : backend, Mode::kExact, context);
    if (!loaded.ok()) return loaded.status();
    reference = *std::move(loaded);
  }

  EvaluateOptions evaluate;
  evaluate.max_tokens = options.max_tokens;
  evaluate.window = options.window;
  evaluate.reference_kv = against_kv;
  evaluate.bos_id = opened->tokenizer->bos_id().value_or(-1);
  absl::StatusOr<Evaluation> evaluation =
      Evaluate(**model, reference.get(), *documents, *kv, evaluate);
  if (!evaluation.ok()) return evaluation.status();
  absl::StatusOr<std::string> hash = LogitsHash(**model, *kv);
  if (!hash.ok()) return hash.status();

  nlohmann::json result = {{"nll", evaluation->nll()},
                           {"perplexity", evaluation->perplexity()},
                           {"predictions", evaluation->predictions()},
                           {"documents", evaluation->documents.size()},
                           {"mode", options.exact ? "exact" : "fast"},
                           {"kv", kv_name},
                           {"device", device->line},
                           {"logits_hash", *hash}};
  if (reference != nullptr) {
    result["kl"] = evaluation->kl();
    result["same_top"] = evaluation->same_top();
    result["miss_gap"] = evaluation->miss_gap();
  }
  if (options.per_document) {
    nlohmann::json& rows = result["per_document"] = nlohmann::json::array();
    for (const DocumentScore& document : evaluation->documents) {
      rows.push_back({{"predictions", document.predictions},
                      {"nll", document.nll},
                      {"kl", document.kl},
                      {"same_top", document.same_top}});
    }
  }
  return result;
}

int RunEval(const Options& options) {
  absl::StatusOr<nlohmann::json> result = Run(options);
  if (!result.ok()) return Fail("eval", result.status());
  if (options.json) {
    std::printf("%s\n", result->dump(2).c_str());
    return kExitOk;
  }
  const auto number = [&](const char* name) { return result->value(name, 0.0); };
  std::printf("perplexity   %.4f  (%.5f nats a token, %lld predictions)\n", number("perplexity"),
              number("nll"), static_cast<long long>(number("predictions")));
  if (result->contains("kl")) {
    std::printf("kl           %.6f nats a token\nsame top     %.2f %%\n", number("kl"),
                100 * number("same_top"));
  }
  std::printf("mode         %s, KV %s, %s\n", (*result)["mode"].get<std::string>().c_str(),
              (*result)["kv"].get<std::string>().c_str(),
              (*result)["device"].get<std::string>().c_str());
  return kExitOk;
}

}  // namespace

RunVerb AddEval(CLI::App& command) {
  auto options = std::make_shared<Options>();
  command.add_option("--model", options->model, "model directory, artifact or GGUF file")
      ->required();
  command
      .add_option("--text", options->text,
                  "plain text, .json (array of strings) or .jsonl (field \"text\")")
      ->required();
  command
      .add_option("--max-tokens", options->max_tokens,
                  "cut every document to so many tokens; 0 = whole")
      ->check(CLI::NonNegativeNumber);
  command
      .add_option("--window", options->window,
                  "tokens seen at once; 0 = as many as the model takes")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--against", options->against,
                     "a model to compare with, run in exact mode: KL divergence from it and "
                     "same top token");
  command.add_flag("--exact", options->exact,
                   "do not quantize activations, keep K and V in f32: the reference");
  command.add_option("--kv", options->kv, "KV cache format: " + KvFormatNames());
  command.add_option("--against-kv", options->against_kv,
                     "that of --against; default: bf16, or f32 where --kv is");
  command.add_option("--device", options->device, "auto, cpu or cuda:N")->capture_default_str();
  command.add_flag("--batch-invariant", options->batch_invariant,
                   "on a GPU, give a token the same bits whatever else is in the step; slower");
  command.add_option("--threads", options->threads, "0 = one for each CPU")
      ->check(CLI::Range(0, 256));
  command.add_flag("--per-document", options->per_document,
                   "with --json: also each document's sums, for paired comparisons");
  command.add_flag("--json", options->json, "one JSON object");
  command.footer(
      "Works on local files, without a server.\n\n"
      "Examples:\n"
      "  nibble eval --model my-int4 --text heldout.jsonl\n"
      "  nibble eval --model my-int4 --against llama-1b --text heldout.jsonl --max-tokens 512 "
      "--json");
  return [options] { return RunEval(*options); };
}

}  // namespace nibble
