// SPDX-License-Identifier: Apache-2.0
// One request on its way to the engine and back, whatever RPC brought it. Knows no gRPC.
//
//   gRPC thread:  Start(prepare)              → queued
//   work pool:    prepare() → Engine::Submit  → or Refused(status)
//   engine:       something is in the stream  → queued
//   delivery:     Ready() → Pop() ...         until an update has an end
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/serve/engine.h"
#include "services/common/metrics.h"
#include "services/common/work_pool.h"
#include "services/generation/model_registry.h"

namespace nibble {

// What all calls share; outlives them.
struct CallContext {
  Metrics& metrics;
  WorkPool& work;      // tokenizing
  WorkPool& delivery;  // from the engine to the RPC
};

class Call : public std::enable_shared_from_this<Call> {
 public:
  using Prepare = std::function<absl::StatusOr<GenerationRequest>()>;

  Call(CallContext context, std::shared_ptr<ServedModel> model, SteadyTime deadline);
  virtual ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Runs `prepare` on the work pool and hands its request to the engine. Once.
  void Start(Prepare prepare);

  // Nobody waits for the answer any more. Any thread, any time.
  void Cancel();

 protected:
  // The request never reached the engine. Called at most once, and Ready is not called then.
  virtual void Refused(const absl::Status& status,
                       std::optional<std::chrono::milliseconds> retry) = 0;
  // Something may be in the stream; called on one thread at a time or another, never on the
  // engine's.
  virtual void Ready() = 0;

  // What is undelivered.
  std::optional<StreamUpdate> Pop();
  // Whether the engine is done with the request: the next Pop has its end, if none had it yet.
  bool Ended() const { return stream_->closed(); }
  // To be called when the end was popped and the tokenizer is not needed any more, so that an
  // unload need not wait for the network.
  void LetGo();

  // Until LetGo.
  const Tokenizer& tokenizer() const { return model_->tokenizer(); }
  // The prompt's token ids; from the first update on.
  const std::vector<int32_t>& prompt() const { return prompt_; }

 private:
  void Submit(const Prepare& prepare);
  void Refuse(const absl::Status& status, std::optional<std::chrono::milliseconds> retry);

  const CallContext context_;
  const SteadyTime deadline_;
  const std::shared_ptr<TokenStream> stream_ = std::make_shared<TokenStream>();
  std::vector<int32_t> prompt_;
  std::mutex mutex_;  // guards what follows, where more than one thread may be about
  std::shared_ptr<ServedModel> model_;
  RequestHandle handle_;
  bool cancelled_ = false;
};

// Counts a request that was refused before the engine had it. `model` is a served model's name or
// "" if there is none.
void CountRejected(Metrics& metrics, const std::string& model, const absl::Status& status);

}  // namespace nibble
