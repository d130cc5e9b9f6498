// SPDX-License-Identifier: Apache-2.0
#include "engine/serve/engine.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/serve/engine_loop.h"
#include "engine/serve/validate.h"
#include "kernels/check.h"

namespace nibble {
namespace {

constexpr char kRetryAfterPayload[] = "nibble.v1/retry-after-ms";

uint64_t DrawSeed() {
  thread_local std::mt19937_64 generator = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  return generator();
}

}  // namespace

std::optional<std::chrono::milliseconds> RetryAfter(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryAfterPayload);
  int64_t milliseconds = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &milliseconds)) return std::nullopt;
  return std::chrono::milliseconds(milliseconds);
}

struct Engine::Impl {
  Impl(std::unique_ptr<ModelRunner> runner, TextDecoderFactory decode, const EngineOptions& options,
       EngineObserver* observer, const SchedulerLimits& limits)
      : loop(std::move(runner), std::move(decode), options, observer, limits) {}

  // Whether a request may enter; with the shared mutex held.
  absl::Status CheckState() const;
  absl::Status CheckQueue(int32_t sequences, int64_t tokens) const;
  absl::Status CheckDeadline(SteadyTime deadline, SteadyTime now, int64_t prompt) const;

  EngineLoop loop;
  std::thread thread;
  std::mutex stop_mutex;  // one Stop at a time
  std::atomic<uint64_t> next_request{1};
};

absl::Status Engine::Impl::CheckState() const {
  const EngineShared& shared = *loop.shared();
  switch (shared.state) {
    case EngineState::kServing:
      return absl::OkStatus();
    case EngineState::kDraining:
      return absl::UnavailableError("the engine is draining and takes no new requests");
    case EngineState::kStopped:
      return absl::UnavailableError("the engine has stopped");
    case EngineState::kFailed:
      return absl::UnavailableError(absl::StrCat("the engine failed: ", shared.failure.message()));
  }
  return absl::OkStatus();
}

absl::Status Engine::Impl::CheckQueue(int32_t sequences, int64_t tokens) const {
  const EngineShared& shared = *loop.shared();
  const EngineOptions& options = loop.options();
  const int32_t waiting = shared.fresh_sequences + shared.waiting_sequences;
  const int64_t queued = shared.fresh_tokens + shared.waiting_tokens;
  // Where nothing waits, one request may be longer than the queue.
  const bool fits = waiting + sequences <= options.max_waiting &&
                    (waiting == 0 || queued + tokens <= options.max_queued_tokens);
  if (fits) return absl::OkStatus();
  const double rate = loop.recent_rate();
  const double seconds = rate > 0 ? static_cast<double>(queued) / rate : 1.0;
  const auto retry_ms = static_cast<int64_t>(std::clamp(seconds, 0.1, 30.0) * 1000);
  absl::Status full = absl::ResourceExhaustedError(absl::StrCat(
      "the queue is full: ", waiting, " sequences with ", queued, " tokens wait, ", sequences,
      " with ", tokens, " tokens do not fit; allowed: ", options.max_waiting, " sequences, ",
      options.max_queued_tokens, " tokens; retry in ", retry_ms, " ms"));
  full.SetPayload(kRetryAfterPayload, absl::Cord(absl::StrCat(retry_ms)));
  return full;
}

absl::Status Engine::Impl::CheckDeadline(SteadyTime deadline, SteadyTime now,
                                         int64_t prompt) const {
  if (deadline == SteadyTime::max()) return absl::OkStatus();
  if (deadline <= now) {
    return absl::DeadlineExceededError("deadline: it has passed before the request was queued");
  }
  // FIFO: all queued tokens come first. At the best speed seen so far this is a lower bound.
  const EngineShared& shared = *loop.shared();
  const int64_t ahead = shared.fresh_tokens + shared.waiting_tokens;
  const double peak = loop.peak_rate();
  const double needs = peak > 0 ? static_cast<double>(ahead + prompt) / peak : 0;
  const double left = Seconds(deadline - now);
  if (needs <= left) return absl::OkStatus();
  return absl::DeadlineExceededError(
      absl::StrCat("deadline: ", static_cast<int64_t>(left * 1000), " ms from now; at least ",
                   static_cast<int64_t>(needs * 1000), " ms are needed to the first token"));
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Make(std::unique_ptr<ModelRunner> runner,
                                                     TextDecoderFactory decode,
                                                     const EngineOptions& options,
                                                     EngineObserver* observer) {
  const RunnerLimits& limits = runner->limits();
  if (absl::Status status = ValidateOptions(options, limits); !status.ok()) return status;
  SchedulerLimits scheduler;
  scheduler.max_sequences = limits.max_sequences;
  scheduler.token_budget = limits.max_rows;
  scheduler.prefill_chunk = options.prefill_chunk == 0 ? limits.max_rows : options.prefill_chunk;
  scheduler.max_logit_rows = limits.max_logit_rows;
  scheduler.kv_blocks = limits.kv_blocks;
  scheduler.slow_reader = options.slow_reader;
  EngineOptions complete = options;
  if (!complete.clock) complete.clock = [] { return std::chrono::steady_clock::now(); };
  return std::unique_ptr<Engine>(new Engine(
      std::make_unique<Impl>(std::move(runner), std::move(decode), complete, observer, scheduler)));
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() { Stop(); }
const RunnerLimits& Engine::limits() const { return impl_->loop.limits(); }
const EngineOptions& Engine::options() const { return impl_->loop.options(); }

void Engine::Start() {
  NIBBLE_CHECK(!impl_->thread.joinable());
  impl_->thread = std::thread([impl = impl_.get()] { impl->loop.Run(); });
}

bool Engine::Step() {
  NIBBLE_CHECK(!impl_->thread.joinable());
  return impl_->loop.Step();
}

absl::Status Engine::Validate(const GenerationRequest& request) const {
  return ValidateRequest(request, options(), limits(), impl_->loop.has_text());
}

absl::StatusOr<RequestHandle> Engine::Submit(GenerationRequest request,
                                             std::shared_ptr<TokenStream> stream) {
  if (absl::Status status = Validate(request); !status.ok()) return status;
  const SteadyTime now = impl_->loop.Now();
  const SteadyTime deadline = request.deadline;
  const int32_t sequences = request.sampling.n;
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  auto owned = std::make_unique<ServedRequest>(impl_->next_request.fetch_add(1), std::move(request),
                                               std::move(stream), DrawSeed(), limits().eos_ids);
  owned->submitted_at = now;
  const RequestHandle handle{owned->id};

  const std::shared_ptr<EngineShared>& shared = impl_->loop.shared();
  std::lock_guard lock(shared->mutex);
  if (absl::Status status = impl_->CheckState(); !status.ok()) return status;
  if (absl::Status status = impl_->CheckQueue(sequences, prompt * sequences); !status.ok()) {
    return status;
  }
  if (absl::Status status = impl_->CheckDeadline(deadline, now, prompt); !status.ok()) {
    return status;
  }
  // A reader may outlive the engine: its callback keeps what it touches alive.
  owned->stream->OnRoom([shared, id = handle.id] {
    std::lock_guard room_lock(shared->mutex);
    shared->inbox.emptied.push_back(id);
    shared->work.notify_one();
  });
  shared->fresh_sequences += sequences;
  shared->fresh_tokens += prompt * sequences;
  ++shared->unfinished;
  shared->inbox.fresh.push_back(std::move(owned));
  shared->work.notify_one();
  return handle;
}

void Engine::Cancel(RequestHandle handle) {
  const SteadyTime now = impl_->loop.Now();
  EngineShared& shared = *impl_->loop.shared();
  std::lock_guard lock(shared.mutex);
  shared.inbox.cancelled.emplace_back(handle.id, now);
  shared.work.notify_one();
}

void Engine::Drain(std::chrono::milliseconds grace) {
  EngineShared& shared = *impl_->loop.shared();
  std::unique_lock lock(shared.mutex);
  if (shared.state == EngineState::kServing) shared.state = EngineState::kDraining;
  const auto done = [&shared] { return shared.unfinished == 0; };
  if (shared.idle.wait_for(lock, grace, done)) return;
  shared.inbox.end_all = true;
  shared.work.notify_one();
  shared.idle.wait(lock, done);
}

void Engine::Stop() {
  std::lock_guard stop_lock(impl_->stop_mutex);
  {
    EngineShared& shared = *impl_->loop.shared();
    std::lock_guard lock(shared.mutex);
    if (shared.state != EngineState::kFailed) shared.state = EngineState::kStopped;
    shared.stop = true;
    shared.work.notify_one();
  }
  if (impl_->thread.joinable()) impl_->thread.join();
  impl_->loop.EndEverything(absl::UnavailableError("the engine has stopped"));
}

EngineStats Engine::Stats() const {
  const EngineLoop& loop = impl_->loop;
  const SteadyTime now = loop.Now();
  EngineStats stats;
  SteadyTime last_step_end;
  {
    EngineShared& shared = *loop.shared();
    std::lock_guard lock(shared.mutex);
    stats = shared.stats;
    stats.state = shared.state;
    stats.waiting = shared.fresh_sequences + shared.waiting_sequences;
    stats.queued_tokens = shared.fresh_tokens + shared.waiting_tokens;
    last_step_end = shared.last_step_end;
  }
  stats.last_step_age = std::max(0.0, Seconds(now - last_step_end));
  stats.heartbeat_age = loop.HeartbeatAge(now);
  stats.current_step_seconds = loop.CurrentStepSeconds(now);
  return stats;
}

absl::Status Engine::health() const {
  EngineShared& shared = *impl_->loop.shared();
  std::lock_guard lock(shared.mutex);
  return shared.failure;
}

}  // namespace nibble
