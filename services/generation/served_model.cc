// SPDX-License-Identifier: Apache-2.0
#include "services/generation/served_model.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "engine/artifact/checkpoint.h"
#include "engine/artifact/source_files.h"
#include "engine/base/cat.h"
#include "engine/model/decoder.h"
#include "engine/serve/runner.h"
#include "engine/serve/text_assembler.h"
#include "kernels/open_device.h"
#include "services/common/open_model.h"

namespace nibble {
namespace {

constexpr int64_t kMinBudget = 1 << 20;
constexpr std::chrono::seconds kTryTimeout{120};
constexpr int kLoadAttempts = 2;

absl::Status CheckRange(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      Cat(field, " is ", value, "; it must be 0 or ", low, "..", high));
}

int64_t StoredBytes(const Checkpoint& checkpoint) {
  int64_t sum = 0;
  for (const TensorInfo& tensor : checkpoint.tensors()) sum += tensor.bytes;
  return sum;
}

}  // namespace

absl::Status ValidateModelSpec(const ModelSpec& spec) {
  if (spec.source.empty()) {
    return absl::InvalidArgumentError(
        "source is empty; it must be artifacts/<identifier>, models/<identifier> or a path "
        "beneath the model root");
  }
  if (!spec.kv_format.empty() && FindKvFormat(spec.kv_format) == nullptr) {
    return absl::InvalidArgumentError(
        Cat("kv_format is \"", spec.kv_format, "\"; it must be one of ", KvFormatNames()));
  }
  if (spec.mode != "fast" && spec.mode != "exact") {
    return absl::InvalidArgumentError(Cat("mode is \"", spec.mode, "\"; it must be fast or exact"));
  }
  if (spec.max_context != 0) {
    absl::Status status = CheckRange("max_context", spec.max_context, 16, 100'000'000);
    if (!status.ok()) return status;
  }
  if (spec.memory_budget_bytes != 0) {
    absl::Status status =
        CheckRange("memory_budget_bytes", spec.memory_budget_bytes, kMinBudget, int64_t{1} << 50);
    if (!status.ok()) return status;
  }
  if (spec.max_running != 0) return CheckRange("max_running", spec.max_running, 1, 256);
  return absl::OkStatus();
}

// Turns what the engine observes into histograms. Runs on the engine's thread.
class ServedModel::Observer : public EngineObserver {
 public:
  Observer(Metrics& metrics, const std::string& name) : metrics_(metrics), name_(name) {
    // Every series exists from the start: a rate over nothing is 0, not absent.
    for (int i = 1; i < kNumFinishReasons; ++i) {
      metrics_.Add(Metric::kRequestsFinished,
                   {name_, kEngine, FinishReasonName(static_cast<FinishReason>(i))}, 0);
    }
    for (Metric id :
         {Metric::kTimeToFirstToken, Metric::kInterTokenLatency, Metric::kRequestLatency,
          Metric::kQueueTime, Metric::kPrefillTime, Metric::kDecodeTime, Metric::kInferenceTime,
          Metric::kCancelToFree, Metric::kStepSeconds, Metric::kIterationTokens,
          Metric::kRequestPromptTokens, Metric::kRequestGeneratedTokens,
          Metric::kRequestLongestChoice, Metric::kRequestMaxTokens, Metric::kRequestChoices,
          Metric::kTimePerOutputToken}) {
      metrics_.Touch(id, {name_, kEngine});
    }
    metrics_.Add(Metric::kRequestsAccepted, {name_, kEngine}, 0);
    for (const char* reason : {"queue_full", "unavailable"}) {
      metrics_.Add(Metric::kRequestsRejected, {name_, kEngine, reason}, 0);
    }
  }

  // What the trial before the model serves does is not a user's doing.
  void Enable() { enabled_ = true; }

  void OnFirstToken(const Timings& timings) override {
    if (!enabled_) return;
    Observe(Metric::kTimeToFirstToken, timings.time_to_first_token);
    Observe(Metric::kQueueTime, timings.queue);
    Observe(Metric::kPrefillTime, timings.prefill);
  }
  void OnInterToken(double seconds) override {
    if (enabled_) Observe(Metric::kInterTokenLatency, seconds);
  }
  void OnFinished(const Finished& request) override {
    if (!enabled_) return;
    metrics_.Add(Metric::kRequestsFinished, {name_, kEngine, FinishReasonName(request.reason)});
    Observe(Metric::kRequestGeneratedTokens, request.usage.completion_tokens);
    Observe(Metric::kRequestLongestChoice, request.longest);
    if (request.reason == FinishReason::kStop || request.reason == FinishReason::kLength) {
      Observe(Metric::kRequestLatency, request.timings.total);
      Observe(Metric::kDecodeTime, request.timings.decode);
      Observe(Metric::kInferenceTime, request.timings.prefill + request.timings.decode);
      if (request.longest > 1) {
        Observe(Metric::kTimePerOutputToken, request.timings.decode / (request.longest - 1));
      }
    }
  }
  void OnStep(double seconds, int32_t tokens) override {
    if (!enabled_) return;
    Observe(Metric::kStepSeconds, seconds);
    Observe(Metric::kIterationTokens, tokens);
  }
  void OnCancelToFree(double seconds) override { Observe(Metric::kCancelToFree, seconds); }

  static constexpr std::string_view kEngine = "0";

 private:
  void Observe(Metric id, double value) { metrics_.Observe(id, {name_, kEngine}, value); }

  Metrics& metrics_;
  const std::string name_;
  std::atomic<bool> enabled_{false};
};

ServedModel::ServedModel(std::string name, ModelSpec spec, const Settings& settings,
                         Metrics& metrics)
    : name_(std::move(name)), spec_(std::move(spec)), settings_(settings), metrics_(metrics) {}

ServedModel::~ServedModel() { Export(false); }

absl::StatusOr<std::unique_ptr<ServedModel>> ServedModel::Load(const std::string& name,
                                                               const ModelSpec& spec,
                                                               const ModelSource& source,
                                                               const Settings& settings,
                                                               Metrics& metrics) {
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<OpenedModel> opened = OpenModel(source.path);
  if (!opened.ok()) return opened.status();

  if (spec.max_context > opened->config.max_positions) {
    return absl::InvalidArgumentError(Cat("max_context is ", spec.max_context, "; ", spec.source,
                                          " allows 16..", opened->config.max_positions));
  }

  DecoderRunnerOptions options;
  options.mode = spec.mode == "exact" ? Mode::kExact : Mode::kFast;
  std::string kv_name = spec.kv_format;
  if (kv_name.empty()) {
    absl::StatusOr<std::string> chosen = KvFormatOf(source.path);
    if (!chosen.ok()) return chosen.status();
    kv_name = *std::move(chosen);
  }
  options.kv_format = FindKvFormat(kv_name);
  if (options.kv_format == nullptr) {
    return absl::InvalidArgumentError(Cat("kv_format of ", spec.source, " is \"", kv_name,
                                          "\"; it must be one of ", KvFormatNames()));
  }
  options.max_sequences = spec.max_running != 0 ? spec.max_running : settings.max_running;
  options.token_budget = std::max(settings.token_budget, options.max_sequences + 1);
  options.max_context = std::min(spec.max_context != 0 ? spec.max_context : settings.max_context,
                                 opened->config.max_positions);

  // The KV cache gets what the weights leave; how much the prepared weights take is known when they
  // have been prepared, so that a budget may need a second try.
  const int64_t budget =
      spec.memory_budget_bytes != 0 ? spec.memory_budget_bytes : settings.model_memory_bytes;
  int64_t weight_bytes = StoredBytes(*opened->checkpoint);
  std::unique_ptr<DecoderRunner> runner;
  for (int attempt = 0; attempt < kLoadAttempts && runner == nullptr; ++attempt) {
    if (budget != 0) {
      options.kv_bytes = budget - weight_bytes;
      const KvSpec kv{options.kv_format, opened->config.layers, opened->config.kv_heads,
                      opened->config.head_dim};
      const int64_t contexts = options.max_sequences * int64_t{options.max_context};
      const int64_t useful =
          (contexts / kKvBlockTokens + options.max_sequences) * kv.BytesPerBlock();
      options.kv_bytes = std::min(options.kv_bytes, useful);
      if (options.kv_bytes < kv.BytesPerBlock()) {
        return absl::ResourceExhaustedError(
            Cat("memory_budget_bytes is ", budget, "; the weights of ", spec.source, " take ",
                weight_bytes, " and one KV block ", kv.BytesPerBlock()));
      }
    }
    absl::StatusOr<OpenedDevice> device =
        OpenDevice(settings.device, {.threads = settings.threads, .tier = ""},
                   {.batch_invariant = settings.batch_invariant});
    if (!device.ok()) return device.status();
    absl::StatusOr<std::unique_ptr<DecoderRunner>> loaded = DecoderRunner::Load(
        std::move(device->backend), opened->config, *opened->checkpoint, options);
    if (!loaded.ok()) return loaded.status();
    const auto taken = static_cast<int64_t>((*loaded)->resident_bytes() + (*loaded)->kv_bytes());
    if (budget != 0 && taken > budget) {
      weight_bytes = static_cast<int64_t>((*loaded)->resident_bytes());
      continue;
    }
    runner = *std::move(loaded);
  }
  if (runner == nullptr) {
    return absl::ResourceExhaustedError(Cat("memory_budget_bytes is ", budget, "; ", spec.source,
                                            " takes ", weight_bytes, " without its KV cache"));
  }

  std::unique_ptr<ServedModel> model(new ServedModel(name, spec, settings, metrics));
  model->pin_ = source.while_serving;
  ModelFacts& facts = model->facts_;
  facts.family = opened->config.family;
  facts.scheme = MainScheme(*opened->checkpoint);
  facts.kv_format = kv_name;
  facts.mode = spec.mode;
  facts.device = runner->decoder().backend().Description();
  facts.max_context = runner->limits().max_context;
  facts.vocabulary = runner->limits().vocab;
  facts.weight_bytes = static_cast<int64_t>(runner->resident_bytes());
  facts.kv_bytes = static_cast<int64_t>(runner->kv_bytes());
  facts.digest = source.digest;
  if (facts.digest.empty()) {
    absl::StatusOr<std::string> digest = SourceDigest(source.path);
    if (!digest.ok()) return digest.status();
    facts.digest = *std::move(digest);
  }
  model->tokenizer_ = opened->tokenizer;
  model->chat_ = std::make_unique<ChatPrompt>(opened->tokenizer);
  facts.has_chat_template = opened->tokenizer->chat_template() != nullptr;

  EngineOptions engine_options;
  engine_options.max_waiting = settings.max_waiting;
  engine_options.max_queued_tokens = settings.max_queued_tokens;
  engine_options.max_choices = settings.max_choices;
  engine_options.max_stop_strings = settings.max_stop_strings;
  engine_options.max_stop_bytes = settings.max_stop_bytes;
  engine_options.max_stop_tokens = settings.max_stop_tokens;
  engine_options.max_logit_bias = settings.max_logit_bias;
  engine_options.slow_reader =
      std::chrono::milliseconds(static_cast<int64_t>(settings.slow_reader_seconds * 1000));
  model->observer_ = std::make_unique<Observer>(metrics, name);
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Make(
      std::move(runner), DecodeWith(opened->tokenizer), engine_options, model->observer_.get());
  if (!engine.ok()) return engine.status();
  model->engine_ = *std::move(engine);
  model->engine_->Start();
  if (absl::Status status = model->Try(); !status.ok()) return status;
  model->observer_->Enable();
  facts.load_time = std::chrono::system_clock::now();
  facts.load_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return model;
}

absl::Status ServedModel::Try() {
  GenerationRequest request;
  request.prompt = {tokenizer_->bos_id().value_or(0)};
  request.sampling.temperature = 0;
  request.sampling.max_tokens = 1;
  auto stream = std::make_shared<TokenStream>();
  absl::StatusOr<RequestHandle> handle = engine_->Submit(std::move(request), stream);
  if (!handle.ok()) return handle.status();
  const auto deadline = std::chrono::steady_clock::now() + kTryTimeout;
  while (std::chrono::steady_clock::now() < deadline) {
    std::optional<StreamUpdate> update = stream->Pop(std::chrono::milliseconds(100));
    if (!update || !update->end) continue;
    if (update->end->status.ok()) {
      // The snapshot is taken at the end of the step, a moment after the stream has ended.
      while (engine_->Stats().generated_tokens == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      before_ = engine_->Stats();
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        Cat("the model ", spec_.source,
            " was loaded and failed its trial: ", update->end->status.message()));
  }
  return absl::DeadlineExceededError(
      Cat("the model ", spec_.source, " gave no token within ",
          std::chrono::duration_cast<std::chrono::seconds>(kTryTimeout).count(), " s"));
}

absl::Status ServedModel::health() const {
  if (absl::Status status = engine_->health(); !status.ok()) return status;
  const EngineStats stats = engine_->Stats();
  const double oldest = std::max(stats.current_step_seconds, stats.heartbeat_age);
  if (oldest > settings_.stale_step_seconds) {
    return absl::UnavailableError(Cat("a step of ", name_, " is ", oldest, " s old"));
  }
  if (stats.state != EngineState::kServing) {
    return absl::UnavailableError(Cat(name_, " takes no requests"));
  }
  return absl::OkStatus();
}

void ServedModel::CountAccepted(int64_t prompt_tokens, int32_t max_tokens, int32_t choices) {
  metrics_.Add(Metric::kRequestsAccepted, {name_, Observer::kEngine});
  metrics_.Observe(Metric::kRequestPromptTokens, {name_, Observer::kEngine},
                   static_cast<double>(prompt_tokens));
  metrics_.Observe(Metric::kRequestMaxTokens, {name_, Observer::kEngine}, max_tokens);
  metrics_.Observe(Metric::kRequestChoices, {name_, Observer::kEngine}, choices);
}

void ServedModel::Export(bool on) {
  collector_.reset();
  if (!on) return;
  collector_ = metrics_.AddCollector([this](MetricSink& sink) {
    const EngineStats stats = engine_->Stats();
    const auto emit = [&](Metric id, auto value) {
      sink.Emit(id, {name_, Observer::kEngine}, static_cast<double>(value));
    };
    emit(Metric::kRequestsRunning, stats.running);
    emit(Metric::kRequestsWaiting, stats.waiting);
    emit(Metric::kQueuedTokens, stats.queued_tokens);
    emit(Metric::kReaderPauses, stats.pauses - before_.pauses);
    emit(Metric::kPromptTokens, stats.prompt_tokens - before_.prompt_tokens);
    emit(Metric::kGeneratedTokens, stats.generated_tokens - before_.generated_tokens);
    emit(Metric::kKvBlocksUsed, stats.kv_blocks_used);
    emit(Metric::kKvBlocksCapacity, stats.kv_blocks_total);
    emit(Metric::kPreemptions, stats.preemptions - before_.preemptions);
    emit(Metric::kSteps, stats.steps - before_.steps);
    emit(Metric::kDeviceSeconds, stats.device_seconds - before_.device_seconds);
    emit(Metric::kLastStepAge, std::max(stats.current_step_seconds, stats.heartbeat_age));
    emit(Metric::kModelWeightBytes, facts_.weight_bytes);
    emit(Metric::kModelKvBytes, facts_.kv_bytes);
    sink.Emit(
        Metric::kModelInfo,
        {name_, Observer::kEngine, facts_.digest, facts_.scheme, facts_.kv_format, facts_.mode}, 1);
  });
}

}  // namespace nibble
