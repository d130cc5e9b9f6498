// SPDX-License-Identifier: Apache-2.0
// One model that answers under a name: tokenizer, engine, and what is told about them.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/serve/engine.h"
#include "engine/tokenizer/tokenizer.h"
#include "services/common/metrics.h"
#include "services/common/settings.h"
#include "services/generation/chat_prompt.h"
#include "services/generation/model_source.h"

namespace nibble {

// What was asked for. Two equal specs of one name are one load.
struct ModelSpec {
  std::string source;  // as the caller named it
  std::string kv_format;
  std::string mode;
  int32_t max_context = 0;
  int64_t memory_budget_bytes = 0;
  int32_t max_running = 0;

  friend bool operator==(const ModelSpec&, const ModelSpec&) = default;
};

// InvalidArgument naming a field of LoadModelRequest that is out of range.
absl::Status ValidateModelSpec(const ModelSpec& spec);

struct ModelFacts {
  std::string digest;
  std::string family;
  std::string scheme;
  std::string kv_format;
  std::string mode;
  std::string device;
  int32_t max_context = 0;
  int32_t vocabulary = 0;
  int64_t weight_bytes = 0;
  int64_t kv_bytes = 0;
  bool has_chat_template = false;
  std::chrono::system_clock::time_point load_time;
  double load_seconds = 0;
};

class ServedModel {
 public:
  // Opens, prepares, starts and tries a model: when it returns, the model has generated a token
  // with finite logits. Takes as long as reading the weights does. NotFound, InvalidArgument,
  // Unimplemented (no kernel for a scheme, by name), ResourceExhausted (the budget). `metrics` and
  // `settings` must outlive the model.
  static absl::StatusOr<std::unique_ptr<ServedModel>> Load(const std::string& name,
                                                           const ModelSpec& spec,
                                                           const ModelSource& source,
                                                           const Settings& settings,
                                                           Metrics& metrics);
  // Joins the engine's thread and gives the memory back.
  ~ServedModel();
  ServedModel(const ServedModel&) = delete;
  ServedModel& operator=(const ServedModel&) = delete;

  const std::string& name() const { return name_; }
  const ModelSpec& spec() const { return spec_; }
  const ModelFacts& facts() const { return facts_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const ChatPrompt& chat() const { return *chat_; }
  Engine& engine() { return *engine_; }

  // OK if the last step succeeded and none is older than the server's stale-step-seconds.
  absl::Status health() const;

  // Counts a request: every accepted one ends up in exactly one outcome.
  void CountAccepted(int64_t prompt_tokens, int32_t max_tokens, int32_t choices);

  // Whether gauges and counters of the engine are exported, under the model's name. One model of a
  // name at a time.
  void Export(bool on);

 private:
  class Observer;
  ServedModel(std::string name, ModelSpec spec, const Settings& settings, Metrics& metrics);
  absl::Status Try();

  const std::string name_;
  const ModelSpec spec_;
  const Settings& settings_;
  Metrics& metrics_;
  ModelFacts facts_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<const ChatPrompt> chat_;
  std::unique_ptr<Observer> observer_;
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<void> pin_;  // of the artifact
  EngineStats before_;         // counters as the trial left them: nobody asked for that
  std::shared_ptr<void> collector_;
};

}  // namespace nibble
