// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "engine/artifact/checkpoint.h"
#include "engine/artifact/file_system.h"
#include "engine/base/cat.h"
#include "engine/model/config.h"
#include "engine/serve/engine.h"
#include "engine/serve/runner.h"
#include "kernels/open_device.h"
#include "services/cli/client.h"
#include "services/cli/exit_codes.h"
#include "services/cli/logits_hash.h"
#include "services/cli/synthetic.h"
#include "services/cli/verbs.h"
#include "services/common/open_model.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string synthetic;
  std::string model;
  std::string scheme = "int4-g128";
  std::string embedding_scheme;
  std::string head_scheme;
  std::string kv;
  std::string keep;
  std::string device = "auto";
  std::string tier;
  int threads = 0;
  int32_t prompt = 512;
  int32_t generate = 128;
  std::vector<int32_t> batch = {1};
  int32_t depth = 0;
  int repeat = 3;
  bool exact = false;
  bool batch_invariant = false;
  bool no_ceilings = false;
  bool json = false;
};

double Seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

int64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0;
  int64_t resident = 0;
  statm >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

int64_t BytesOfFiles(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_regular_file(path, error)) {
    return static_cast<int64_t>(std::filesystem::file_size(path, error));
  }
  int64_t sum = 0;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    if (entry.is_regular_file(error)) sum += static_cast<int64_t>(entry.file_size(error));
  }
  return sum;
}

// Requests of one measurement, driven step by step on this thread.
class Run {
 public:
  explicit Run(Engine& engine) : engine_(engine) {}

  absl::Status Add(int32_t prompt, int32_t max_tokens) {
    GenerationRequest request;
    for (int32_t i = 0; i < prompt; ++i) {
      // Different for each request, so that nothing can be shared.
      const auto mixed =
          static_cast<int64_t>(i + 1) * 7919 + static_cast<int64_t>(streams_.size()) * 104729;
      request.prompt.push_back(static_cast<int32_t>(mixed % engine_.limits().vocab));
    }
    request.sampling.temperature = 0;
    request.sampling.max_tokens = max_tokens;
    request.sampling.ignore_eos = true;
    auto stream = std::make_shared<TokenStream>(max_tokens + 1);
    absl::StatusOr<RequestHandle> handle = engine_.Submit(std::move(request), stream);
    if (!handle.ok()) return handle.status();
    streams_.push_back(std::move(stream));
    tokens_.push_back(0);
    return absl::OkStatus();
  }

  // Runs a step and counts what it gave.
  absl::Status Step() {
    engine_.Step();
    for (size_t i = 0; i < streams_.size(); ++i) {
      const std::optional<StreamUpdate> update = streams_[i]->TryPop();
      if (!update) continue;
      for (const Delta& delta : update->deltas)
        tokens_[i] += static_cast<int64_t>(delta.tokens.size());
      if (!update->end) continue;
      ++ended_;
      if (!update->end->status.ok()) return update->end->status;
    }
    return absl::OkStatus();
  }

  bool AllStarted() const {
    return std::all_of(tokens_.begin(), tokens_.end(), [](int64_t count) { return count > 0; });
  }
  bool AnyEnded() const { return ended_ > 0; }
  bool AllEnded() const { return ended_ == streams_.size(); }
  int64_t tokens() const {
    int64_t sum = 0;
    for (int64_t count : tokens_) sum += count;
    return sum;
  }

 private:
  Engine& engine_;
  std::vector<std::shared_ptr<TokenStream>> streams_;
  std::vector<int64_t> tokens_;
  size_t ended_ = 0;
};

// Tokens of a prompt per second, from Submit to its first token: the best of some tries.
absl::StatusOr<double> Prefill(Engine& engine, int32_t prompt, int repeat) {
  double best = 0;
  for (int i = 0; i < repeat; ++i) {
    Run run(engine);
    const auto start = Clock::now();
    if (absl::Status status = run.Add(prompt, 1); !status.ok()) return status;
    while (!run.AllEnded()) {
      if (absl::Status status = run.Step(); !status.ok()) return status;
    }
    best = std::max(best, prompt / Seconds(start));
  }
  return best;
}

struct DecodeRate {
  double tokens_per_s = 0;
  double device_idle = 0;  // share of the time in which the device had nothing to do, if it tells
};

// `batch` sequences that decode together, `depth` tokens deep.
absl::StatusOr<DecodeRate> Decode(Engine& engine, int32_t batch, int32_t depth, int32_t generate,
                                  int repeat) {
  DecodeRate best;
  for (int i = 0; i < repeat; ++i) {
    Run run(engine);
    const int32_t prompt = std::max(1, depth);
    // What the first sequences generate while the last prompts are still computed.
    const int32_t ahead = 2 * batch + batch * prompt / engine.limits().max_rows;
    for (int32_t sequence = 0; sequence < batch; ++sequence) {
      absl::Status status = run.Add(prompt, ahead + generate + 1);
      if (!status.ok()) return status;
    }
    while (!run.AllStarted()) {
      if (absl::Status status = run.Step(); !status.ok()) return status;
    }
    const int64_t before = run.tokens();
    const double busy_before = engine.Stats().device_seconds;
    const auto start = Clock::now();
    for (int32_t step = 0; step < generate && !run.AnyEnded(); ++step) {
      if (absl::Status status = run.Step(); !status.ok()) return status;
    }
    const double seconds = Seconds(start);
    const double busy = engine.Stats().device_seconds - busy_before;
    const DecodeRate rate{static_cast<double>(run.tokens() - before) / seconds, 1 - busy / seconds};
    if (rate.tokens_per_s > best.tokens_per_s) best = rate;
    while (!run.AllEnded()) {
      if (absl::Status status = run.Step(); !status.ok()) return status;
    }
  }
  return best;
}

absl::StatusOr<nlohmann::json> Measure(const Options& options, const std::string& path) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(path);
  if (!checkpoint.ok()) return checkpoint.status();
  absl::StatusOr<DecoderConfig> config = ParseDecoderConfig((*checkpoint)->config());
  if (!config.ok()) return config.status();
  const std::string scheme = MainScheme(**checkpoint);
  std::string kv = options.kv;
  if (kv.empty()) {
    absl::StatusOr<std::string> chosen = KvFormatOf(path);
    if (!chosen.ok()) return chosen.status();
    kv = *std::move(chosen);
  }

  const int32_t largest = *std::max_element(options.batch.begin(), options.batch.end());
  const int32_t longest = std::max({options.prompt + 1,
                                    options.generate + options.depth + 3 * largest + 2 +
                                        largest * std::max(1, options.depth) / 512,
                                    kKvBlockTokens});
  if (longest > config->max_positions) {
    return absl::InvalidArgumentError(Cat("prompt, depth and tokens need ", longest,
                                          " positions; the model has ", config->max_positions));
  }
  DecoderRunnerOptions runner_options;
  runner_options.mode = options.exact ? Mode::kExact : Mode::kFast;
  runner_options.kv_format = FindKvFormat(kv);
  if (runner_options.kv_format == nullptr) {
    return absl::InvalidArgumentError(
        Cat("--kv is \"", kv, "\"; it must be one of ", KvFormatNames()));
  }
  runner_options.max_context = longest;
  runner_options.max_sequences = largest;
  const KvSpec spec{runner_options.kv_format, config->layers, config->kv_heads, config->head_dim};
  const int64_t blocks = (longest + kKvBlockTokens - 1) / kKvBlockTokens;
  runner_options.kv_bytes = spec.BytesPerBlock() * blocks * largest;

  absl::StatusOr<OpenedDevice> opened_device =
      OpenDevice(options.device, {.threads = options.threads, .tier = options.tier},
                 {.batch_invariant = options.batch_invariant});
  if (!opened_device.ok()) return opened_device.status();
  Backend& device = *opened_device->backend;
  // What keeps the device's units busy: a GPU needs more rows.
  const int32_t chunk = device.asynchronous() ? 2048 : 512;
  runner_options.token_budget = chunk + largest;
  nlohmann::json result = {{"artifact", path},
                           {"scheme", scheme},
                           {"kv", kv},
                           {"mode", options.exact ? "exact" : "fast"},
                           {"device", opened_device->line}};
  const auto start = Clock::now();
  absl::StatusOr<std::unique_ptr<DecoderRunner>> runner =
      DecoderRunner::Load(std::move(opened_device->backend), *config, **checkpoint, runner_options);
  if (!runner.ok()) return runner.status();
  checkpoint->reset();
  result["load_seconds"] = Seconds(start);
  const bool ahead = (*runner)->limits().ahead;
  result["artifact_bytes"] = BytesOfFiles(path);
  result["kv_bytes"] = (*runner)->kv_bytes();

  EngineOptions engine_options;
  engine_options.prefill_chunk = chunk;
  engine_options.max_waiting = std::max(engine_options.max_waiting, largest);
  absl::StatusOr<std::unique_ptr<Engine>> engine =
      Engine::Make(*std::move(runner), nullptr, engine_options, nullptr);
  if (!engine.ok()) return engine.status();

  absl::StatusOr<std::string> hash = LogitsHash(**engine);
  if (!hash.ok()) return hash.status();
  result["logits_hash"] = *hash;
  absl::StatusOr<double> prefill = Prefill(**engine, options.prompt, options.repeat);
  if (!prefill.ok()) return prefill.status();
  result["prefill_tokens"] = options.prompt;
  result["prefill_tokens_per_s"] = *prefill;
  for (int32_t batch : options.batch) {
    absl::StatusOr<DecodeRate> decode =
        Decode(**engine, batch, options.depth, options.generate, options.repeat);
    if (!decode.ok()) return decode.status();
    result["decode"].push_back(
        {{"batch", batch}, {"depth", options.depth}, {"tokens_per_s", decode->tokens_per_s}});
    if (ahead) result["decode"].back()["device_idle"] = decode->device_idle;
  }
  result["resident_bytes"] = ResidentBytes();
  if (!options.no_ceilings) {
    const Ceilings ceilings = device.MeasureCeilings();
    result["ceilings"] = {{"read_gb_per_s", ceilings.read_gb_per_s},
                          {"int8_gops", ceilings.int8_gops},
                          {"bf16_gflops", ceilings.bf16_gflops}};
  }
  return result;
}

// The synthetic artifact, written if it is not there yet.
absl::StatusOr<std::string> Synthetic(const Options& options) {
  SyntheticSpec spec;
  std::string known;
  for (const SyntheticShape& shape : kSyntheticShapes) {
    if (shape.name == options.synthetic) spec.shape = &shape;
    known += Cat(known.empty() ? "" : ", ", shape.name);
  }
  if (spec.shape == nullptr) {
    return absl::InvalidArgumentError(
        Cat("--synthetic is \"", options.synthetic, "\"; it must be one of ", known));
  }
  spec.scheme = options.scheme;
  spec.embedding_scheme = options.embedding_scheme;
  spec.head_scheme = options.head_scheme;
  std::string directory = options.keep;
  if (directory.empty()) {
    std::error_code error;
    const std::filesystem::path temporary = std::filesystem::temp_directory_path(error);
    if (error) return absl::InternalError("there is no temporary directory: set TMPDIR");
    directory = (temporary / Cat("nibble-bench-", getpid())).string();
  }
  if (std::filesystem::exists(directory + "/nibble.json")) return directory;
  if (absl::Status status = WriteSynthetic(spec, directory); !status.ok()) {
    if (options.keep.empty()) PosixFileSystem().RemoveTree(directory).IgnoreError();
    return status;
  }
  return directory;
}

absl::StatusOr<nlohmann::json> MakeAndMeasure(const Options& options) {
  if (options.synthetic.empty() == options.model.empty()) {
    return absl::InvalidArgumentError("give either --synthetic or --model");
  }
  if (!options.model.empty()) return Measure(options, options.model);
  absl::StatusOr<std::string> path = Synthetic(options);
  if (!path.ok()) return path.status();
  absl::StatusOr<nlohmann::json> result = Measure(options, *path);
  if (options.keep.empty()) {
    absl::Status removed = PosixFileSystem().RemoveTree(*path);
    if (!removed.ok()) return removed;
  }
  return result;
}

int RunBench(const Options& options) {
  absl::StatusOr<nlohmann::json> result = MakeAndMeasure(options);
  if (!result.ok()) return Fail("bench", result.status());
  if (options.json) {
    std::printf("%s\n", result->dump(2).c_str());
    return kExitOk;
  }
  const nlohmann::json& r = *result;
  std::printf("%s, %s, KV %s, mode %s\n", r["device"].get<std::string>().c_str(),
              r["scheme"].get<std::string>().c_str(), r["kv"].get<std::string>().c_str(),
              r["mode"].get<std::string>().c_str());
  std::printf("prefill %5d tokens        %10.1f tokens/s\n", options.prompt,
              r["prefill_tokens_per_s"].get<double>());
  for (const nlohmann::json& row : r["decode"]) {
    std::printf("decode  batch %3d depth %5d %9.1f tokens/s", row["batch"].get<int>(),
                row["depth"].get<int>(), row["tokens_per_s"].get<double>());
    if (row.contains("device_idle")) {
      std::printf(", device idle %.1f %%", 100 * row["device_idle"].get<double>());
    }
    std::printf("\n");
  }
  std::printf("resident %.0f MB\n", r["resident_bytes"].get<double>() / 1e6);
  if (r.contains("ceilings")) {
    std::printf("ceilings: read %.1f GB/s, int8 %.0f GOP/s, bf16 %.0f GFLOP/s\n",
                r["ceilings"]["read_gb_per_s"].get<double>(),
                r["ceilings"]["int8_gops"].get<double>(),
                r["ceilings"]["bf16_gflops"].get<double>());
  }
  return kExitOk;
}

}  // namespace

RunVerb AddBench(CLI::App& command) {
  auto options = std::make_shared<Options>();
  command.add_option("--synthetic", options->synthetic,
                     "a shape with random weights: 110m, 1b, 8b");
  command.add_option("--model", options->model, "or a model directory, artifact or GGUF file");
  command.add_option("--scheme", options->scheme, "how a synthetic model's linears are stored")
      ->capture_default_str();
  command.add_option("--embedding-scheme", options->embedding_scheme,
                     "default: int8-g128 if --scheme is quantized");
  command.add_option("--head-scheme", options->head_scheme,
                     "default: int8-g128 if --scheme is quantized");
  command.add_option("--kv", options->kv, "KV cache format: " + KvFormatNames());
  command.add_option("--keep", options->keep,
                     "write the synthetic artifact here and keep it; used again if it is there");
  command.add_option("--device", options->device, "auto, cpu or cuda:N")->capture_default_str();
  command.add_flag("--batch-invariant", options->batch_invariant,
                   "on a GPU, give a token the same bits whatever else is in the step; slower");
  command.add_option("--threads", options->threads, "0 = one for each CPU")
      ->check(CLI::Range(0, 256));
  command.add_option("--tier", options->tier,
                     "instruction tier: scalar, avx2, avx512, avx512-bf16");
  command.add_option("-p", options->prompt, "tokens of the prompt")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("-n", options->generate, "tokens to decode")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--batch", options->batch, "sequences that decode together, e.g. 1,4,16")
      ->delimiter(',')
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command.add_option("--depth", options->depth, "tokens already in the cache when decoding begins")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command.add_option("--repeat", options->repeat, "tries; the best counts")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  command.add_flag("--exact", options->exact, "do not quantize or round activations");
  command.add_flag("--no-ceilings", options->no_ceilings, "do not measure the machine");
  command.add_flag("--json", options->json, "one JSON object");
  command.footer(
      "Works without a server: a synthetic model is a real artifact, loaded as serving does and "
      "run\n"
      "through the engine's steps.\n\n"
      "Examples:\n"
      "  nibble bench --synthetic 1b --scheme int4-g128 --threads 2 -p 512 -n 128 --batch 1,16 "
      "--json\n"
      "  nibble bench --model my-int4 --kv int8 --depth 2048");
  return [options] { return RunBench(*options); };
}

}  // namespace nibble
