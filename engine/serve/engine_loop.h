// SPDX-License-Identifier: Apache-2.0
// The engine's thread: what a step does, and what other threads leave for it.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/serve/choice.h"
#include "engine/serve/engine.h"
#include "engine/serve/request.h"
#include "engine/serve/runner.h"
#include "engine/serve/scheduler.h"
#include "engine/serve/token_stream.h"

namespace nibble {

inline double Seconds(SteadyTime::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// A request between Submit and its end.
struct ServedRequest {
  ServedRequest(uint64_t number, GenerationRequest asked, std::shared_ptr<TokenStream> reader,
                uint64_t drawn_seed, const std::vector<int32_t>& eos)
      : id(number),
        request(std::move(asked)),
        stream(std::move(reader)),
        plan(request.sampling, drawn_seed, eos) {
    info.prompt_tokens = prompt_tokens();
    info.seed = plan.seed;
  }

  struct Part {  // one choice
    SequenceId sequence = 0;
    std::unique_ptr<Choice> choice;
    SteadyTime last_token;
    bool paused = false;
    int32_t drawn = 0;  // tokens that steps under way draw, 0..kStepsUnderWay
    int32_t slot = 0;   // where the latest of those steps leaves its token: index into `sampling`
  };

  int32_t prompt_tokens() const { return static_cast<int32_t>(request.prompt.size()); }
  bool scores() const { return request.sampling.prompt_logprobs.has_value(); }

  const uint64_t id;
  const GenerationRequest request;
  const std::shared_ptr<TokenStream> stream;
  const SamplingPlan plan;
  std::vector<Part> parts;  // by choice; a choice that ended has no sequence
  size_t ended = 0;
  bool started = false;
  bool prompt_sent = false;
  PromptInfo info;
  FinishReason worst = FinishReason::kNone;
  int32_t generated = 0;
  SteadyTime submitted_at, started_at, first_token_at, last_token_at;
};

// What other threads ask of the engine's thread.
struct EngineInbox {
  std::vector<std::unique_ptr<ServedRequest>> fresh;
  std::vector<std::pair<uint64_t, SteadyTime>> cancelled;  // request, when
  std::vector<uint64_t> emptied;                           // requests whose reader made room
  bool end_all = false;

  bool empty() const { return fresh.empty() && cancelled.empty() && emptied.empty() && !end_all; }
};

// Everything that is shared with other threads; streams keep it alive through their callbacks.
struct EngineShared {
  std::mutex mutex;
  std::condition_variable work;  // there is something in the inbox, or stop
  std::condition_variable idle;  // unfinished has become 0
  EngineInbox inbox;
  bool stop = false;
  EngineState state = EngineState::kServing;
  absl::Status failure;
  size_t unfinished = 0;  // requests accepted and not ended
  // Of the waiting sequences: in the inbox, and in the scheduler after the last step.
  int32_t fresh_sequences = 0, waiting_sequences = 0;
  int64_t fresh_tokens = 0, waiting_tokens = 0;
  EngineStats stats;
  SteadyTime last_step_end;
};

class EngineLoop {
 public:
  // observer may be nullptr.
  EngineLoop(std::unique_ptr<ModelRunner> runner, TextDecoderFactory decode,
             const EngineOptions& options, EngineObserver* observer, const SchedulerLimits& limits);

  // ---- Any thread
  const RunnerLimits& limits() const { return runner_->limits(); }
  const EngineOptions& options() const { return options_; }
  bool has_text() const { return static_cast<bool>(decode_); }
  const std::shared_ptr<EngineShared>& shared() const { return shared_; }
  SteadyTime Now() const { return options_.clock(); }
  double peak_rate() const { return peak_rate_.load(std::memory_order_relaxed); }
  double recent_rate() const { return recent_rate_.load(std::memory_order_relaxed); }
  double HeartbeatAge(SteadyTime now) const;
  double CurrentStepSeconds(SteadyTime now) const;  // 0 = no step is running

  // ---- The engine's thread
  void Run();   // steps until EngineShared::stop
  bool Step();  // whether anything was computed
  // Ends every request, those in the inbox too, with kShutdown and `why`.
  void EndEverything(const absl::Status& why);

 private:
  struct Route {
    ServedRequest* request;
    size_t choice;
    ServedRequest::Part& part() const { return request->parts[choice]; }
  };
  struct EngineStep {
    StepPlan plan;
    StepInput input;
    SteadyTime began;
  };

  void Beat() { heartbeat_.store(Now().time_since_epoch().count(), std::memory_order_relaxed); }
  void TakeInbox();
  void AddRequest(std::unique_ptr<ServedRequest> owned);
  void ResumeEmptied(uint64_t id);
  void EndExpired(SteadyTime now);
  void Begin(ServedRequest& request, SteadyTime now);
  void Submit(EngineStep& step);
  void BuildInput(const StepPlan& plan, StepInput* input);
  bool MayRunAhead(const StepInput& input) const;
  bool CollectOldest();  // false: the device failed
  void Deliver(const StepPlan& plan);
  void DeliverScores(ServedRequest& request, const PlannedSequence& planned, size_t* score);
  void DeliverToken(const PlannedSequence& planned, const SampleResult& drawn, SteadyTime now);
  void PushDelta(ServedRequest& request, size_t choice, SteadyTime now);
  void EndChoice(ServedRequest& request, size_t choice);
  void EndRequest(ServedRequest& request, FinishReason reason, const absl::Status& why);
  void Close(ServedRequest& request, const absl::Status& why);
  void EndAll(const absl::Status& why);
  void Fail(const absl::Status& status);
  void CountStep(const EngineStep& step);
  void Publish();

  const std::unique_ptr<ModelRunner> runner_;
  const TextDecoderFactory decode_;
  const EngineOptions options_;
  EngineObserver no_observer_;
  EngineObserver* const observer_;
  const std::shared_ptr<EngineShared> shared_ = std::make_shared<EngineShared>();

  std::atomic<SteadyTime::rep> heartbeat_{0};   // clock value
  std::atomic<SteadyTime::rep> step_began_{0};  // clock value; 0 = no step is running
  std::atomic<double> peak_rate_{0};            // rows per second of the best step so far
  std::atomic<double> recent_rate_{0};          // moving average

  Scheduler scheduler_;
  SequenceId next_sequence_ = 1;
  std::unordered_map<uint64_t, std::unique_ptr<ServedRequest>> requests_;
  std::unordered_map<SequenceId, Route> routes_;  // of the choices that have not ended
  EngineStats counters_;                          // the counters of the snapshot
  // A ring: the oldest of `under_way_` is steps_[oldest_].
  std::array<EngineStep, kStepsUnderWay> steps_;
  size_t oldest_ = 0, under_way_ = 0;
  SteadyTime last_collected_;
  // Buffers, kept for their capacity.
  EngineInbox taken_;
  std::vector<EndedSequence> expired_;
  StepOutput output_;
  Delta delta_;
};

}  // namespace nibble
