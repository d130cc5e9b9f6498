// SPDX-License-Identifier: Apache-2.0
#include "engine/serve/engine.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/serve/choice.h"
#include "engine/serve/scheduler.h"
#include "engine/serve/validate.h"
#include "kernels/check.h"

namespace nibble {
namespace {

constexpr char kRetryAfterPayload[] = "nibble.v1/retry-after-ms";
constexpr std::chrono::milliseconds kIdleWait{500};    // the heartbeat of an engine without work
constexpr std::chrono::milliseconds kStalledWait{20};  // when all there is waits for a reader

double Seconds(SteadyTime::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

struct Request {
  Request(uint64_t number, GenerationRequest asked, std::shared_ptr<TokenStream> reader,
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
struct Inbox {
  std::vector<std::unique_ptr<Request>> fresh;
  std::vector<std::pair<uint64_t, SteadyTime>> cancelled;  // request, when
  std::vector<uint64_t> emptied;                           // requests whose reader made room
  bool end_all = false;

  bool empty() const { return fresh.empty() && cancelled.empty() && emptied.empty() && !end_all; }
};

// Everything that is shared with other threads; streams keep it alive through their callbacks.
struct Shared {
  std::mutex mutex;
  std::condition_variable work;  // there is something in the inbox, or stop
  std::condition_variable idle;  // unfinished has become 0
  Inbox inbox;
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

uint64_t DrawSeed() {
  thread_local std::mt19937_64 generator = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  return generator();
}

absl::Status EndStatus(FinishReason reason, const absl::Status& why) {
  switch (reason) {
    case FinishReason::kNone:
    case FinishReason::kStop:
    case FinishReason::kLength:
      return absl::OkStatus();
    case FinishReason::kCancelled:
      return absl::CancelledError("the request was cancelled");
    case FinishReason::kDeadline:
      return absl::DeadlineExceededError("the request's deadline passed while it was served");
    case FinishReason::kSlowReader:
      return absl::ResourceExhaustedError(
          "the reader did not take the output for too long; the request was ended");
    case FinishReason::kError:
    case FinishReason::kShutdown:
      return why;
  }
  return why;
}

}  // namespace

std::optional<std::chrono::milliseconds> RetryAfter(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryAfterPayload);
  int64_t milliseconds = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &milliseconds)) return std::nullopt;
  return std::chrono::milliseconds(milliseconds);
}

struct Engine::Impl {
  Impl(std::unique_ptr<ModelRunner> model, TextDecoderFactory make_decoder,
       const EngineOptions& wanted, EngineObserver* watcher, const SchedulerLimits& limits)
      : runner(std::move(model)),
        decode(std::move(make_decoder)),
        options(wanted),
        observer(watcher != nullptr ? watcher : &no_observer),
        scheduler(limits) {}

  // ---- Fixed after Make
  const std::unique_ptr<ModelRunner> runner;
  const TextDecoderFactory decode;
  EngineOptions options;
  EngineObserver no_observer;
  EngineObserver* const observer;
  const std::shared_ptr<Shared> shared = std::make_shared<Shared>();
  std::thread thread;
  std::mutex stop_mutex;  // one Stop at a time

  // ---- Any thread
  std::atomic<uint64_t> next_request{1};
  std::atomic<SteadyTime::rep> heartbeat{0};   // clock value
  std::atomic<SteadyTime::rep> step_began{0};  // clock value; 0 = no step is running
  std::atomic<double> peak_rate{0};            // rows per second of the best step so far
  std::atomic<double> recent_rate{0};          // moving average

  // ---- The engine's thread only
  Scheduler scheduler;
  SequenceId next_sequence = 1;
  std::unordered_map<uint64_t, std::unique_ptr<Request>> requests;
  struct Route {
    Request* request;
    size_t choice;
  };
  std::unordered_map<SequenceId, Route> routes;
  EngineStats counters;  // the counters of the snapshot
  Inbox taken;
  std::vector<EndedSequence> expired;
  StepPlan plan;
  StepInput input;
  StepOutput output;
  Delta delta;
  std::vector<SteadyTime> cancelled_at;  // requests whose blocks are about to be free

  SteadyTime Now() const { return options.clock(); }
  void Beat() { heartbeat.store(Now().time_since_epoch().count(), std::memory_order_relaxed); }

  void TakeInbox();
  void AddRequest(std::unique_ptr<Request> request);
  void ResumeEmptied(uint64_t id);
  void ObserveCancelled();
  bool RunStep();
  void EndExpired(SteadyTime now);
  void BuildInput();
  void Begin(Request& request, SteadyTime now);
  void Deliver();
  void DeliverScores(Request& request, const PlannedSequence& planned, size_t* score);
  void DeliverToken(const PlannedSequence& planned, const SampleResult& drawn, SteadyTime now);
  void PushDelta(Request& request, size_t choice, SteadyTime now);
  void EndChoice(Request& request, size_t choice);
  void EndRequest(Request& request, FinishReason reason, const absl::Status& why);
  void Close(Request& request, const absl::Status& why);
  void EndAll(const absl::Status& why);
  void Fail(const absl::Status& status);
  void Publish();
  void Loop();
};

// ---- Requests in

void Engine::Impl::TakeInbox() {
  {
    std::lock_guard lock(shared->mutex);
    std::swap(taken, shared->inbox);
    // Until Publish they count where they were: nothing leaves the count on its way.
    shared->waiting_sequences += std::exchange(shared->fresh_sequences, 0);
    shared->waiting_tokens += std::exchange(shared->fresh_tokens, 0);
  }
  for (std::unique_ptr<Request>& request : taken.fresh) AddRequest(std::move(request));
  for (const auto& [id, when] : taken.cancelled) {
    const auto found = requests.find(id);
    if (found == requests.end()) continue;
    cancelled_at.push_back(when);
    EndRequest(*found->second, FinishReason::kCancelled, absl::OkStatus());
  }
  for (const uint64_t id : taken.emptied) ResumeEmptied(id);
  if (taken.end_all) EndAll(absl::UnavailableError("the engine is shutting down"));
  taken.fresh.clear();
  taken.cancelled.clear();
  taken.emptied.clear();
  taken.end_all = false;
}

void Engine::Impl::AddRequest(std::unique_ptr<Request> owned) {
  Request& request = *owned;
  requests.emplace(request.id, std::move(owned));
  const SamplingParams& sampling = request.request.sampling;
  request.parts.resize(static_cast<size_t>(sampling.n));
  for (size_t i = 0; i < request.parts.size(); ++i) {
    Request::Part& part = request.parts[i];
    part.sequence = next_sequence++;
    part.choice =
        std::make_unique<Choice>(request.request.prompt, request.plan, static_cast<int32_t>(i),
                                 decode ? decode(sampling.skip_special_tokens) : nullptr);
    routes.emplace(part.sequence, Route{&request, i});
    SequenceSpec spec;
    spec.id = part.sequence;
    spec.prompt_tokens = request.prompt_tokens();
    spec.max_tokens = sampling.max_tokens;
    spec.score_prompt = i == 0 && request.scores();
    spec.shares_with = i == 0 ? 0 : request.parts[0].sequence;
    spec.deadline = request.request.deadline;
    scheduler.Add(spec);
  }
}

void Engine::Impl::ResumeEmptied(uint64_t id) {
  const auto found = requests.find(id);
  if (found == requests.end()) return;
  Request& request = *found->second;
  for (Request::Part& part : request.parts) {
    if (!part.paused || request.stream->Full(part.choice->index())) continue;
    part.paused = false;
    scheduler.Resume(part.sequence);
  }
}

void Engine::Impl::ObserveCancelled() {
  if (cancelled_at.empty()) return;
  const SteadyTime now = Now();
  for (const SteadyTime when : cancelled_at) observer->OnCancelToFree(Seconds(now - when));
  cancelled_at.clear();
}

// ---- One step

bool Engine::Impl::RunStep() {
  Beat();
  TakeInbox();
  ObserveCancelled();
  {
    std::lock_guard lock(shared->mutex);
    if (shared->state == EngineState::kFailed) return false;
  }
  const SteadyTime began = Now();
  EndExpired(began);
  scheduler.Plan(&plan);
  if (plan.sequences.empty()) {
    Publish();
    return false;
  }
  step_began.store(began.time_since_epoch().count(), std::memory_order_relaxed);
  for (const PlannedSequence& planned : plan.sequences) {
    const auto route = routes.find(planned.id);
    if (route != routes.end() && !route->second.request->started) {
      Begin(*route->second.request, began);
    }
  }
  BuildInput();
  runner->Submit(input);
  TakeInbox();  // While the device computes: what is cancelled now is dropped when it is done.
  const absl::Status status = runner->Collect(&output);
  scheduler.Commit();
  ObserveCancelled();
  if (!status.ok()) {
    Fail(status);
    return false;
  }
  Deliver();
  const double seconds = Seconds(Now() - began);
  if (seconds > 0) {
    const double rate = plan.rows / seconds;
    const double recent = recent_rate.load(std::memory_order_relaxed);
    recent_rate.store(recent == 0 ? rate : 0.9 * recent + 0.1 * rate, std::memory_order_relaxed);
    if (rate > peak_rate.load(std::memory_order_relaxed)) {
      peak_rate.store(rate, std::memory_order_relaxed);
    }
  }
  ++counters.steps;
  counters.computed_tokens += static_cast<uint64_t>(plan.rows);
  counters.last_step_seconds = seconds;
  observer->OnStep(seconds, plan.rows);
  step_began.store(0, std::memory_order_relaxed);
  Publish();
  Beat();
  return true;
}

void Engine::Impl::EndExpired(SteadyTime now) {
  expired.clear();
  scheduler.Expire(now, &expired);
  for (const EndedSequence& ended : expired) {
    // The first choice that ends takes its request's other choices with it.
    const auto route = routes.find(ended.id);
    if (route == routes.end()) continue;
    EndRequest(*route->second.request, ended.reason, absl::OkStatus());
  }
}

void Engine::Impl::Begin(Request& request, SteadyTime now) {
  request.started = true;
  request.started_at = now;
  counters.prompt_tokens += static_cast<uint64_t>(request.prompt_tokens());
  if (!request.scores() || request.prompt_tokens() == 1) {
    request.prompt_sent = true;
    request.stream->PushPrompt(request.info);
  }
}

void Engine::Impl::BuildInput() {
  input.Clear();
  for (const PlannedSequence& planned : plan.sequences) {
    input.max_blocks =
        std::max(input.max_blocks, static_cast<int32_t>(scheduler.blocks(planned.id).size()));
    input.max_query = std::max(input.max_query, planned.rows);
  }
  input.query_start.push_back(0);
  for (const PlannedSequence& planned : plan.sequences) {
    const Route& route = routes.at(planned.id);
    const Choice& choice = *route.request->parts[route.choice].choice;
    const int32_t first_row = input.rows();
    const int32_t sequence = input.sequences();
    for (int32_t i = 0; i < planned.rows; ++i) {
      input.token_ids.push_back(choice.token(planned.start + i));
      input.positions.push_back(planned.start + i);
      input.row_sequence.push_back(sequence);
    }
    input.query_start.push_back(input.rows());
    input.context_length.push_back(planned.start + planned.rows);
    const std::span<const int32_t> blocks = scheduler.blocks(planned.id);
    input.block_table.insert(input.block_table.end(), blocks.begin(), blocks.end());
    input.block_table.resize(static_cast<size_t>((sequence + 1) * input.max_blocks), 0);
    for (int32_t at = planned.score_begin; at < planned.score_end; ++at) {
      input.logit_rows.push_back(first_row + at - planned.start);
      input.draws.push_back(0);
      input.score.push_back(
          {choice.token(at + 1), *route.request->request.sampling.prompt_logprobs});
    }
    if (planned.draw) {
      input.logit_rows.push_back(first_row + planned.rows - 1);
      input.draws.push_back(1);
      input.sampling.push_back(choice.Row());
    }
  }
}

// ---- Tokens out

void Engine::Impl::Deliver() {
  const SteadyTime now = Now();
  size_t score = 0;
  size_t sample = 0;
  for (const PlannedSequence& planned : plan.sequences) {
    const auto route = routes.find(planned.id);
    if (route == routes.end()) {  // Cancelled while the step ran.
      score += static_cast<size_t>(planned.score_end - planned.score_begin);
      sample += planned.draw ? 1 : 0;
      continue;
    }
    Request& request = *route->second.request;
    const size_t choice = route->second.choice;
    DeliverScores(request, planned, &score);
    if (planned.draw) {
      DeliverToken(planned, output.samples[sample++], now);
    } else if (request.request.sampling.max_tokens == 0 &&
               planned.start + planned.rows == request.prompt_tokens()) {
      request.parts[choice].choice->End(FinishReason::kLength, &delta);
      PushDelta(request, choice, now);
    }
  }
}

void Engine::Impl::DeliverScores(Request& request, const PlannedSequence& planned, size_t* score) {
  for (int32_t at = planned.score_begin; at < planned.score_end; ++at) {
    request.info.prompt_logprobs.push_back(std::move(output.scores[(*score)++]));
  }
  const bool complete =
      static_cast<int32_t>(request.info.prompt_logprobs.size()) == request.prompt_tokens() - 1;
  if (request.scores() && complete && !request.prompt_sent) {
    request.prompt_sent = true;
    request.stream->PushPrompt(std::move(request.info));
  }
}

void Engine::Impl::DeliverToken(const PlannedSequence& planned, const SampleResult& drawn,
                                SteadyTime now) {
  const Route route = routes.at(planned.id);
  Request& request = *route.request;
  Request::Part& part = request.parts[route.choice];
  if (!drawn.finite) {
    EndRequest(request, FinishReason::kError,
               absl::InternalError(absl::StrCat("the model's logits for position ",
                                                planned.start + planned.rows,
                                                " have no finite value to draw a token from")));
    return;
  }
  part.choice->Accept(drawn, &delta);
  ++counters.generated_tokens;
  ++request.generated;
  if (request.generated == 1) {
    request.first_token_at = now;
    Timings so_far;
    so_far.queue = Seconds(request.started_at - request.submitted_at);
    so_far.prefill = Seconds(now - request.started_at);
    so_far.time_to_first_token = Seconds(now - request.submitted_at);
    observer->OnFirstToken(so_far);
  }
  if (part.choice->generated() > 1) observer->OnInterToken(Seconds(now - part.last_token));
  part.last_token = request.last_token_at = now;
  PushDelta(request, route.choice, now);
}

// Hands `delta` to the reader; it may be the choice's last, and then the request's.
void Engine::Impl::PushDelta(Request& request, size_t choice, SteadyTime now) {
  Request::Part& part = request.parts[choice];
  const FinishReason finish = delta.finish;
  const bool full = request.stream->Push(delta);
  if (finish != FinishReason::kNone) {
    request.worst = std::max(request.worst, finish);
    EndChoice(request, choice);
    if (request.ended == request.parts.size()) Close(request, absl::OkStatus());
    return;
  }
  scheduler.Append(part.sequence);
  if (full) {
    part.paused = true;
    scheduler.Pause(part.sequence, now);
    ++counters.pauses;
  }
}

void Engine::Impl::EndChoice(Request& request, size_t choice) {
  Request::Part& part = request.parts[choice];
  scheduler.Remove(part.sequence);
  routes.erase(part.sequence);
  part.sequence = 0;
  ++request.ended;
}

void Engine::Impl::EndRequest(Request& request, FinishReason reason, const absl::Status& why) {
  for (size_t i = 0; i < request.parts.size(); ++i) {
    if (request.parts[i].sequence == 0) continue;
    Delta last;
    request.parts[i].choice->End(reason, &last);
    request.stream->Push(last);
    EndChoice(request, i);
  }
  request.worst = std::max(request.worst, reason);
  Close(request, why);
}

// Tells the reader and forgets the request.
void Engine::Impl::Close(Request& request, const absl::Status& why) {
  const SteadyTime now = Now();
  StreamEnd end;
  end.status = EndStatus(request.worst, why);
  end.usage.prompt_tokens = request.prompt_tokens();
  end.usage.completion_tokens = request.generated;
  Timings& timings = end.timings;
  timings.total = Seconds(now - request.submitted_at);
  timings.queue = Seconds((request.started ? request.started_at : now) - request.submitted_at);
  if (request.generated > 0) {
    timings.prefill = Seconds(request.first_token_at - request.started_at);
    timings.decode = Seconds(request.last_token_at - request.first_token_at);
    timings.time_to_first_token = Seconds(request.first_token_at - request.submitted_at);
  } else if (request.started) {
    timings.prefill = Seconds(now - request.started_at);
  }
  observer->OnFinished({request.worst, end.usage, end.timings});
  request.stream->Close(std::move(end));
  requests.erase(request.id);
  std::lock_guard lock(shared->mutex);
  if (--shared->unfinished == 0) shared->idle.notify_all();
}

void Engine::Impl::EndAll(const absl::Status& why) {
  while (!requests.empty()) {
    EndRequest(*requests.begin()->second, FinishReason::kShutdown, why);
  }
}

void Engine::Impl::Fail(const absl::Status& status) {
  {
    std::lock_guard lock(shared->mutex);
    shared->state = EngineState::kFailed;
    shared->failure = status;
  }
  TakeInbox();  // Nothing enters any more; what did is ended with the rest.
  EndAll(absl::UnavailableError(absl::StrCat("the engine failed: ", status.message())));
  step_began.store(0, std::memory_order_relaxed);
  Publish();
}

void Engine::Impl::Publish() {
  counters.running = scheduler.running();
  counters.paused = scheduler.paused();
  counters.waiting = scheduler.waiting();
  counters.queued_tokens = scheduler.queued_tokens();
  counters.kv_blocks_used = scheduler.kv().used();
  counters.kv_blocks_total = scheduler.kv().total();
  counters.preemptions = scheduler.preemptions();
  const SteadyTime now = Now();
  std::lock_guard lock(shared->mutex);
  if (counters.steps != shared->stats.steps) shared->last_step_end = now;
  shared->stats = counters;
  shared->waiting_sequences = counters.waiting;
  shared->waiting_tokens = counters.queued_tokens;
}

void Engine::Impl::Loop() {
  for (;;) {
    const bool computed = RunStep();
    std::unique_lock lock(shared->mutex);
    if (shared->stop) return;
    if (computed) continue;
    const bool stalled = shared->unfinished > 0;
    shared->work.wait_for(lock, stalled ? kStalledWait : kIdleWait,
                          [this] { return shared->stop || !shared->inbox.empty(); });
    if (shared->stop) return;
  }
}

// ---- The public face

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
  auto impl =
      std::make_unique<Impl>(std::move(runner), std::move(decode), options, observer, scheduler);
  if (!impl->options.clock) impl->options.clock = [] { return std::chrono::steady_clock::now(); };
  impl->shared->last_step_end = impl->Now();
  impl->Beat();
  impl->Publish();
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() { Stop(); }
const RunnerLimits& Engine::limits() const { return impl_->runner->limits(); }
const EngineOptions& Engine::options() const { return impl_->options; }

void Engine::Start() {
  NIBBLE_CHECK(!impl_->thread.joinable());
  impl_->thread = std::thread([impl = impl_.get()] { impl->Loop(); });
}

bool Engine::Step() {
  NIBBLE_CHECK(!impl_->thread.joinable());
  return impl_->RunStep();
}

absl::Status Engine::Validate(const GenerationRequest& request) const {
  return ValidateRequest(request, impl_->options, limits(), static_cast<bool>(impl_->decode));
}

absl::StatusOr<RequestHandle> Engine::Submit(GenerationRequest request,
                                             std::shared_ptr<TokenStream> stream) {
  if (absl::Status status = Validate(request); !status.ok()) return status;
  const SteadyTime now = impl_->Now();
  const int32_t sequences = request.sampling.n;
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t tokens = prompt * sequences;
  const SteadyTime deadline = request.deadline;
  if (deadline <= now) {
    return absl::DeadlineExceededError("deadline: it has passed before the request was queued");
  }
  auto owned = std::make_unique<Request>(impl_->next_request.fetch_add(1), std::move(request),
                                         std::move(stream), DrawSeed(), limits().eos_ids);
  owned->submitted_at = now;
  const RequestHandle handle{owned->id};

  const std::shared_ptr<Shared>& shared = impl_->shared;
  std::lock_guard lock(shared->mutex);
  switch (shared->state) {
    case EngineState::kServing:
      break;
    case EngineState::kDraining:
      return absl::UnavailableError("the engine is draining and takes no new requests");
    case EngineState::kStopped:
      return absl::UnavailableError("the engine has stopped");
    case EngineState::kFailed:
      return absl::UnavailableError(absl::StrCat("the engine failed: ", shared->failure.message()));
  }
  const int32_t waiting = shared->fresh_sequences + shared->waiting_sequences;
  const int64_t queued = shared->fresh_tokens + shared->waiting_tokens;
  const EngineOptions& options = impl_->options;
  if (waiting + sequences > options.max_waiting ||
      (waiting > 0 && queued + tokens > options.max_queued_tokens)) {
    const double rate = impl_->recent_rate.load(std::memory_order_relaxed);
    const double seconds = rate > 0 ? static_cast<double>(queued) / rate : 1.0;
    const auto retry_ms = static_cast<int64_t>(std::clamp(seconds, 0.1, 30.0) * 1000);
    absl::Status full = absl::ResourceExhaustedError(absl::StrCat(
        "the queue is full: ", waiting, " sequences with ", queued, " tokens wait, ", sequences,
        " with ", tokens, " tokens do not fit; allowed: ", options.max_waiting, " sequences, ",
        options.max_queued_tokens, " tokens; retry in ", retry_ms, " ms"));
    full.SetPayload(kRetryAfterPayload, absl::Cord(absl::StrCat(retry_ms)));
    return full;
  }
  // FIFO: all queued tokens come first. At the best speed seen so far this is a lower bound.
  const double peak = impl_->peak_rate.load(std::memory_order_relaxed);
  const double needs = peak > 0 ? static_cast<double>(queued + prompt) / peak : 0;
  if (deadline != SteadyTime::max() && needs > Seconds(deadline - now)) {
    return absl::DeadlineExceededError(
        absl::StrCat("deadline: ", static_cast<int64_t>(Seconds(deadline - now) * 1000),
                     " ms from now; at least ", static_cast<int64_t>(needs * 1000),
                     " ms are needed to the first token"));
  }
  // The callback outlives neither the shared state nor its use of it: it holds a reference.
  owned->stream->OnRoom([shared, id = handle.id] {
    std::lock_guard room_lock(shared->mutex);
    shared->inbox.emptied.push_back(id);
    shared->work.notify_one();
  });
  shared->fresh_sequences += sequences;
  shared->fresh_tokens += tokens;
  ++shared->unfinished;
  shared->inbox.fresh.push_back(std::move(owned));
  shared->work.notify_one();
  return handle;
}

void Engine::Cancel(RequestHandle handle) {
  const SteadyTime now = impl_->Now();
  std::lock_guard lock(impl_->shared->mutex);
  impl_->shared->inbox.cancelled.emplace_back(handle.id, now);
  impl_->shared->work.notify_one();
}

void Engine::Drain(std::chrono::milliseconds grace) {
  Shared& shared = *impl_->shared;
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
    std::lock_guard lock(impl_->shared->mutex);
    if (impl_->shared->state != EngineState::kFailed) {
      impl_->shared->state = EngineState::kStopped;
    }
    impl_->shared->stop = true;
    impl_->shared->work.notify_one();
  }
  if (impl_->thread.joinable()) impl_->thread.join();
  impl_->TakeInbox();
  impl_->EndAll(absl::UnavailableError("the engine has stopped"));
  impl_->Publish();
}

EngineStats Engine::Stats() const {
  const SteadyTime now = impl_->Now();
  EngineStats stats;
  SteadyTime last_step_end;
  {
    std::lock_guard lock(impl_->shared->mutex);
    stats = impl_->shared->stats;
    stats.state = impl_->shared->state;
    stats.waiting = impl_->shared->fresh_sequences + impl_->shared->waiting_sequences;
    stats.queued_tokens = impl_->shared->fresh_tokens + impl_->shared->waiting_tokens;
    last_step_end = impl_->shared->last_step_end;
  }
  const auto age = [now](SteadyTime::rep since) {
    return std::max(0.0, Seconds(now - SteadyTime(SteadyTime::duration(since))));
  };
  stats.last_step_age = std::max(0.0, Seconds(now - last_step_end));
  stats.heartbeat_age = age(impl_->heartbeat.load(std::memory_order_relaxed));
  const SteadyTime::rep began = impl_->step_began.load(std::memory_order_relaxed);
  stats.current_step_seconds = began == 0 ? 0 : age(began);
  return stats;
}

absl::Status Engine::health() const {
  std::lock_guard lock(impl_->shared->mutex);
  return impl_->shared->failure;
}

}  // namespace nibble
