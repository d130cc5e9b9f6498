// SPDX-License-Identifier: Apache-2.0
// nibble quantize: submits a job, with what it needs.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/quant/pipeline.h"
#include "kernels/ops.h"
#include "nibble/v1/quantization.grpc.pb.h"
#include "services/cli/client.h"
#include "services/cli/exit_codes.h"
#include "services/cli/job_watch.h"
#include "services/cli/json_output.h"
#include "services/cli/upload_client.h"
#include "services/cli/verbs.h"
#include "services/quantization/status_macros.h"

namespace nibble {
namespace {

struct Options {
  ClientOptions client;
  std::string model;
  std::string recipe = "gptq";
  std::string scheme = "int4-g128";
  std::string kv = "bf16";
  std::string embedding_scheme = "bf16";
  std::string head_scheme = "bf16";
  std::vector<std::string> overrides;  // PATTERN=SCHEME
  std::string calibration;
  int32_t samples = 128;
  int32_t length = 512;
  std::string eval;
  int32_t eval_tokens = 16384;
  std::string gate;
  std::string name;
  std::string request_id;
  bool watch = false;
  bool json = false;
};

bool StartsWith(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

// A resource's name, a local file or directory, which is sent, or else a path on the server.
absl::Status SetModel(const Client& client, const Options& options, v1::JobSpec* spec) {
  std::error_code ignored;
  if (StartsWith(options.model, "models/")) {
    spec->set_model(options.model);
  } else if (std::filesystem::exists(options.model, ignored)) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string name,
                            UploadModel(client, options.model, {"", options.json}));
    spec->set_model(name);
  } else {
    // A bare name is an uploaded model's if there is one of that name.
    const auto stub = v1::QuantizationService::NewStub(client.channel());
    v1::GetModelRequest request;
    request.set_name(absl::StrCat("models/", options.model));
    grpc::ClientContext context;
    client.Prepare(&context);
    v1::Model model;
    if (stub->GetModel(&context, request, &model).ok()) {
      spec->set_model(model.name());
    } else {
      spec->set_model_path(options.model);
    }
  }
  return absl::OkStatus();
}

absl::Status SetText(const Client& client, const std::string& text, bool quiet,
                     v1::TextSource* source) {
  std::error_code ignored;
  if (StartsWith(text, "calibrationSets/")) {
    source->set_calibration_set(text);
  } else if (std::filesystem::exists(text, ignored)) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string name, UploadText(client, text, {"", quiet}));
    source->set_calibration_set(name);
  } else {
    source->set_path(text);
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::Job> Submit(const Client& client, const Options& options) {
  v1::CreateJobRequest request;
  request.set_request_id(options.request_id);
  v1::JobSpec& spec = *request.mutable_spec();
  spec.set_recipe(options.recipe);
  spec.set_scheme(options.scheme);
  spec.set_kv_format(options.kv);
  spec.set_embedding_scheme(options.embedding_scheme);
  spec.set_head_scheme(options.head_scheme);
  for (const std::string& entry : options.overrides) {
    const size_t equals = entry.rfind('=');
    if (equals == std::string::npos || equals == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--override '", entry, "' must be PATTERN=SCHEME"));
    }
    v1::SchemeOverride* rule = spec.add_overrides();
    rule->set_pattern(entry.substr(0, equals));
    rule->set_scheme(entry.substr(equals + 1));
  }
  spec.set_calibration_samples(options.samples);
  spec.set_calibration_length(options.length);
  spec.set_evaluation_max_tokens(options.eval_tokens);
  spec.set_artifact_id(options.name);
  if (!options.gate.empty()) {
    // Wrong words are found before anything is sent.
    NIBBLE_ASSIGN_OR_RETURN(const Gate gate, ParseGate(options.gate));
    v1::Gate* bounds = spec.mutable_gate();
    if (gate.max_perplexity_ratio > 0) bounds->set_max_perplexity_ratio(gate.max_perplexity_ratio);
    if (gate.max_kl > 0) bounds->set_max_kl(gate.max_kl);
    if (gate.min_same_top > 0) bounds->set_min_same_top(gate.min_same_top);
  }
  NIBBLE_RETURN_IF_ERROR(SetModel(client, options, &spec));
  if (!options.calibration.empty()) {
    NIBBLE_RETURN_IF_ERROR(
        SetText(client, options.calibration, options.json, spec.mutable_calibration()));
  }
  if (!options.eval.empty()) {
    NIBBLE_RETURN_IF_ERROR(SetText(client, options.eval, options.json, spec.mutable_evaluation()));
  }
  const auto stub = v1::QuantizationService::NewStub(client.channel());
  grpc::ClientContext context;
  client.Prepare(&context);
  v1::Job job;
  const grpc::Status status = stub->CreateJob(&context, request, &job);
  if (!status.ok()) return client.Explain(status);
  return job;
}

int Run(const Options& options) {
  const absl::StatusOr<std::unique_ptr<Client>> client = Client::Make(options.client);
  if (!client.ok()) return Fail("quantize", client.status());
  const absl::StatusOr<v1::Job> job = Submit(**client, options);
  if (!job.ok()) return Fail("quantize", job.status());
  if (!options.watch) {
    if (options.json) {
      PrintJson(ToJson(*job));
    } else {
      std::printf("%s\n", job->name().c_str());
    }
    return kExitOk;
  }
  if (!options.json) std::fprintf(stderr, "submitted %s\n", job->name().c_str());
  const absl::StatusOr<v1::Job> ended = WatchJobToEnd(
      **client, job->name(), options.json ? WatchOutput::kNothing : WatchOutput::kProgress);
  if (!ended.ok()) return Fail("quantize", ended.status());
  if (!options.json) return PrintJobEnd(**client, *ended);
  PrintJson(ToJson(*ended));
  return JobExitCode(*ended);
}

}  // namespace

RunVerb AddQuantize(CLI::App& command) {
  const auto options = std::make_shared<Options>();
  Options& o = *options;
  command
      .add_option("--model", o.model,
                  "models/<id>, a local directory or GGUF file (sent, unless the server has the "
                  "same files), or a path beneath the server's model root")
      ->required();
  command.add_option("--name", o.name, "name of the artifact to be (default: the job's id)");
  command.add_option("--recipe", o.recipe, "how to round and what to do before it")
      ->capture_default_str();
  command.add_option("--scheme", o.scheme, "format of the weights")->capture_default_str();
  command.add_option("--kv", o.kv, "KV cache format: " + KvFormatNames())->capture_default_str();
  command.add_option("--embedding-scheme", o.embedding_scheme, "format of the embedding")
      ->capture_default_str();
  command.add_option("--head-scheme", o.head_scheme, "format of the output head")
      ->capture_default_str();
  command.add_option("--override", o.overrides,
                     "PATTERN=SCHEME for modules by name; may be given again, later ones win");
  command.add_option("--calibration", o.calibration,
                     "text for calibration: a local file (.txt, .json, .jsonl), "
                     "calibrationSets/<id>, or a path on the server");
  command.add_option("--samples", o.samples, "calibration samples, 1..4096")->capture_default_str();
  command.add_option("--length", o.length, "tokens of a sample, 16..32768")->capture_default_str();
  command.add_option("--eval", o.eval, "held-out text for report and gate, as --calibration");
  command.add_option("--eval-tokens", o.eval_tokens, "most tokens evaluated")
      ->capture_default_str();
  command.add_option("--gate", o.gate,
                     "bounds that decide over success, e.g. \"ppl<=1.05,kl<=0.1,top>=0.9\"");
  command.add_option("--request-id", o.request_id, "repeating the call with the same id is safe");
  command.add_flag("--watch", o.watch, "follow the job to its end");
  command.add_flag("--json", o.json, "the job as JSON");
  AddClientOptions(command, &o.client);
  command.footer(
      "Examples:\n"
      "  nibble quantize --model ./llama --recipe gptq --scheme int4-g128 \\\n"
      "      --calibration calib.jsonl --eval heldout.jsonl --gate 'ppl<=1.05,kl<=0.1' \\\n"
      "      --name llama-int4 --watch\n"
      "  nibble quantize --model models/llama --recipe rtn --scheme int8 --name llama-int8\n"
      "Exit codes with --watch: 0 published, 6 the gate failed, 7 cancelled, 1 failed otherwise.");
  return [options] { return Run(*options); };
}

}  // namespace nibble
