// SPDX-License-Identifier: Apache-2.0
// Continuous batching: requests in, streams of tokens out.
//
// One thread (Start) or one caller at a time (Step, for tests and benchmarks) runs the steps. Each
// step: take new requests and cancellations → scheduler plans → runner computes → tokens go to
// their streams. What a request gets does not depend on what else is in the batch, on how its
// prompt was cut into chunks or on preemptions, as far as the runner's logits do not.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/serve/request.h"
#include "engine/serve/runner.h"
#include "engine/serve/text_assembler.h"
#include "engine/serve/token_stream.h"

namespace nibble {

struct EngineOptions {
  int32_t prefill_chunk = 0;            // tokens of one prompt in one step; 0 = the token budget
  int32_t max_waiting = 256;            // sequences (choices) that wait, >= 1
  int64_t max_queued_tokens = 1 << 20;  // their prompt tokens
  int32_t max_choices = 16;             // SamplingParams::n, <= max_waiting
  int32_t max_stop_strings = 16;
  int32_t max_stop_bytes = 256;  // of one stop string
  int32_t max_stop_tokens = 64;
  int32_t max_logit_bias = 1024;                 // entries
  std::chrono::milliseconds slow_reader{30000};  // a paused sequence ends after this long
  std::function<SteadyTime()> clock;             // default: std::chrono::steady_clock::now
};

// Observations for histograms. All calls come from the engine's thread and must return at once.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  struct Finished {
    FinishReason reason = FinishReason::kNone;  // the worst over the choices
    Usage usage;
    Timings timings;
    int32_t longest = 0;  // tokens of its longest choice
  };
  virtual void OnFirstToken(const Timings& /*so_far*/) {}  // queue, prefill, time_to_first_token
  virtual void OnInterToken(double /*seconds*/) {}         // between two tokens of one choice
  virtual void OnFinished(const Finished& /*request*/) {}  // once per accepted request
  virtual void OnStep(double /*seconds*/, int32_t /*tokens*/) {}
  virtual void OnCancelToFree(double /*seconds*/) {}  // from Cancel to its blocks being free
};

enum class EngineState : uint8_t {
  kServing,
  kDraining,  // Drain: finishes what it has, takes nothing new
  kStopped,
  kFailed,  // the runner failed
};

// A consistent snapshot, taken at the end of the last step.
struct EngineStats {
  EngineState state = EngineState::kServing;
  int32_t running = 0;        // sequences that hold a place in the batch, paused ones too
  int32_t paused = 0;         // of all sequences, those whose reader is slow
  int32_t waiting = 0;        // sequences
  int64_t queued_tokens = 0;  // tokens that the waiting sequences must still compute
  int32_t kv_blocks_used = 0;
  int32_t kv_blocks_total = 0;
  // Counters since Make.
  uint64_t steps = 0;
  uint64_t preemptions = 0;
  uint64_t pauses = 0;
  uint64_t prompt_tokens = 0;    // of requests that began to run
  uint64_t computed_tokens = 0;  // rows of all steps; recomputation counts again
  uint64_t generated_tokens = 0;
  double device_seconds = 0;  // that the device worked on steps; 0 if it does not tell
  // Seconds, as of the call of Stats().
  double last_step_seconds = 0;     // duration of the last step; 0 = none yet
  double last_step_age = 0;         // since the last step ended; since Make if there was none
  double current_step_seconds = 0;  // age of the step that is running; 0 = none
  double heartbeat_age = 0;         // since the engine's thread last came by; it does so at least
                                    // every half second when idle, and around every step
};

struct RequestHandle {
  uint64_t id = 0;  // never 0 for a request that was accepted
};

// The pause that a ResourceExhausted from Submit suggests, if it suggests one.
std::optional<std::chrono::milliseconds> RetryAfter(const absl::Status& status);

class Engine {
 public:
  // decode: makes the text decoders; empty = streams carry tokens only and stop strings are
  // refused. observer may be nullptr; it must outlive the engine. InvalidArgument naming an option
  // that is out of range.
  static absl::StatusOr<std::unique_ptr<Engine>> Make(std::unique_ptr<ModelRunner> runner,
                                                      TextDecoderFactory decode,
                                                      const EngineOptions& options,
                                                      EngineObserver* observer);
  ~Engine();  // Stop()
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const RunnerLimits& limits() const;
  const EngineOptions& options() const;

  // Starts the engine's thread. At most once.
  void Start();
  // One step on the caller's thread, for use without Start. Returns whether anything was computed.
  bool Step();

  // Checks a request's fields without queueing it: InvalidArgument or OutOfRange naming the field,
  // its value and the allowed range. Any thread.
  absl::Status Validate(const GenerationRequest& request) const;

  // Queues a request. Its stream gets prompt, deltas and, whatever happens, exactly one end.
  // Any thread; does not block. Errors (the stream is not touched then): Validate's;
  // ResourceExhausted with RetryAfter when the queue is full; DeadlineExceeded when the deadline
  // passed or cannot be met; Unavailable when draining, stopped or failed.
  absl::StatusOr<RequestHandle> Submit(GenerationRequest request,
                                       std::shared_ptr<TokenStream> stream);

  // Ends a request with kCancelled; its blocks are free within one step. No effect on a request
  // that has ended. Any thread; does not block.
  void Cancel(RequestHandle handle);

  // New requests are refused from now on. Returns when all others have ended; after `grace` the
  // rest ends with kShutdown. Needs Start. Any thread.
  void Drain(std::chrono::milliseconds grace);

  // Ends everything with kShutdown and joins the thread. Idempotent.
  void Stop();

  EngineStats Stats() const;    // any thread; does not block on a step
  absl::Status health() const;  // OK, or why the runner failed. Any thread

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
