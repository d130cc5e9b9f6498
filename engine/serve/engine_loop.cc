// SPDX-License-Identifier: Apache-2.0
#include "engine/serve/engine_loop.h"

#include <algorithm>
#include <span>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace nibble {
namespace {

constexpr std::chrono::milliseconds kIdleWait{500};    // the heartbeat of an engine without work
constexpr std::chrono::milliseconds kStalledWait{20};  // when all there is waits for a reader

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

EngineLoop::EngineLoop(std::unique_ptr<ModelRunner> runner, TextDecoderFactory decode,
                       const EngineOptions& options, EngineObserver* observer,
                       const SchedulerLimits& limits)
    : runner_(std::move(runner)),
      decode_(std::move(decode)),
      options_(options),
      observer_(observer != nullptr ? observer : &no_observer_),
      scheduler_(limits) {
  shared_->last_step_end = Now();
  Beat();
  Publish();
}

double EngineLoop::HeartbeatAge(SteadyTime now) const {
  const SteadyTime last{SteadyTime::duration(heartbeat_.load(std::memory_order_relaxed))};
  return std::max(0.0, Seconds(now - last));
}

double EngineLoop::CurrentStepSeconds(SteadyTime now) const {
  const SteadyTime::rep began = step_began_.load(std::memory_order_relaxed);
  return began == 0 ? 0 : std::max(0.0, Seconds(now - SteadyTime(SteadyTime::duration(began))));
}

// ---- Requests in

void EngineLoop::TakeInbox() {
  {
    std::lock_guard lock(shared_->mutex);
    std::swap(taken_, shared_->inbox);
    // Until Publish they count where they were: nothing leaves the count on its way.
    shared_->waiting_sequences += std::exchange(shared_->fresh_sequences, 0);
    shared_->waiting_tokens += std::exchange(shared_->fresh_tokens, 0);
  }
  for (std::unique_ptr<ServedRequest>& request : taken_.fresh) AddRequest(std::move(request));
  for (const auto& [id, when] : taken_.cancelled) {
    const auto found = requests_.find(id);
    if (found == requests_.end()) continue;
    EndRequest(*found->second, FinishReason::kCancelled, absl::OkStatus());
    observer_->OnCancelToFree(Seconds(Now() - when));
  }
  for (const uint64_t id : taken_.emptied) ResumeEmptied(id);
  if (taken_.end_all) EndAll(absl::UnavailableError("the engine is shutting down"));
  taken_.fresh.clear();
  taken_.cancelled.clear();
  taken_.emptied.clear();
  taken_.end_all = false;
}

void EngineLoop::AddRequest(std::unique_ptr<ServedRequest> owned) {
  ServedRequest& request = *owned;
  requests_.emplace(request.id, std::move(owned));
  const SamplingParams& sampling = request.request.sampling;
  request.parts.resize(static_cast<size_t>(sampling.n));
  for (size_t i = 0; i < request.parts.size(); ++i) {
    ServedRequest::Part& part = request.parts[i];
    part.sequence = next_sequence_++;
    part.choice =
        std::make_unique<Choice>(request.request.prompt, request.plan, static_cast<int32_t>(i),
                                 decode_ ? decode_(sampling.skip_special_tokens) : nullptr);
    routes_.emplace(part.sequence, Route{&request, i});
    SequenceSpec spec;
    spec.id = part.sequence;
    spec.prompt_tokens = request.prompt_tokens();
    spec.max_tokens = sampling.max_tokens;
    spec.score_prompt = i == 0 && request.scores();
    spec.shares_with = i == 0 ? 0 : request.parts[0].sequence;
    spec.deadline = request.request.deadline;
    scheduler_.Add(spec);
  }
}

void EngineLoop::ResumeEmptied(uint64_t id) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  ServedRequest& request = *found->second;
  for (ServedRequest::Part& part : request.parts) {
    if (!part.paused || request.stream->Full(part.choice->index())) continue;
    part.paused = false;
    scheduler_.Resume(part.sequence);
  }
}

// ---- One step

// Where the device works by itself a step is submitted before the one before it is collected: what
// that one draws stays on the device (StepInput::token_ids), and a choice that turns out to end
// with it has computed a row too much.
bool EngineLoop::Step() {
  Beat();
  TakeInbox();
  {
    std::lock_guard lock(shared_->mutex);
    if (shared_->state == EngineState::kFailed) return false;
  }
  EngineStep& next = steps_[(oldest_ + under_way_) % kStepsUnderWay];
  next.began = Now();
  EndExpired(next.began);
  scheduler_.Plan(&next.plan);
  const bool planned = !next.plan.sequences.empty();
  if (planned) Submit(next);
  if (under_way_ == 0) {
    Publish();
    return false;
  }
  const size_t ahead = planned && MayRunAhead(next.input) ? 1 : 0;
  // While the device computes: what is cancelled now is dropped when it is done.
  if (under_way_ > ahead) TakeInbox();
  while (under_way_ > ahead) {
    if (!CollectOldest()) return false;
  }
  Publish();
  Beat();
  return true;
}

void EngineLoop::Submit(EngineStep& step) {
  for (const PlannedSequence& planned : step.plan.sequences) {
    ServedRequest& request = *routes_.at(planned.id).request;
    if (!request.started) Begin(request, step.began);
  }
  BuildInput(step.plan, &step.input);
  if (under_way_ == 0) {
    step_began_.store(step.began.time_since_epoch().count(), std::memory_order_relaxed);
  }
  runner_->Submit(step.input);
  scheduler_.Commit();
  ++under_way_;
}

// Whether the step after this one can be submitted before this one's results are there. Scores need
// the logits, which that step overwrites.
bool EngineLoop::MayRunAhead(const StepInput& input) const {
  return runner_->limits().ahead && input.score.empty();
}

bool EngineLoop::CollectOldest() {
  const EngineStep& step = steps_[oldest_];
  const absl::Status status = runner_->Collect(&output_);
  oldest_ = (oldest_ + 1) % kStepsUnderWay;
  --under_way_;
  if (!status.ok()) {
    Fail(status);
    return false;
  }
  Deliver(step.plan);
  CountStep(step);
  return true;
}

void EngineLoop::CountStep(const EngineStep& step) {
  const SteadyTime now = Now();
  // Two steps under way share the time in which both are.
  const double seconds = Seconds(now - std::max(step.began, last_collected_));
  last_collected_ = now;
  step_began_.store(under_way_ > 0 ? now.time_since_epoch().count() : 0, std::memory_order_relaxed);
  if (seconds > 0) {
    const double rate = step.plan.rows / seconds;
    const double recent = recent_rate();
    recent_rate_.store(recent == 0 ? rate : 0.9 * recent + 0.1 * rate, std::memory_order_relaxed);
    if (rate > peak_rate()) peak_rate_.store(rate, std::memory_order_relaxed);
  }
  ++counters_.steps;
  counters_.computed_tokens += static_cast<uint64_t>(step.plan.rows);
  counters_.device_seconds += output_.device_seconds;
  counters_.last_step_seconds = seconds;
  observer_->OnStep(seconds, step.plan.rows);
}

void EngineLoop::EndExpired(SteadyTime now) {
  expired_.clear();
  scheduler_.Expire(now, &expired_);
  for (const EndedSequence& ended : expired_) {
    // The first choice that ends takes its request's other choices with it.
    const auto route = routes_.find(ended.id);
    if (route == routes_.end()) continue;
    EndRequest(*route->second.request, ended.reason, absl::OkStatus());
  }
}

void EngineLoop::Begin(ServedRequest& request, SteadyTime now) {
  request.started = true;
  request.started_at = now;
  counters_.prompt_tokens += static_cast<uint64_t>(request.prompt_tokens());
  if (!request.scores() || request.prompt_tokens() == 1) {
    request.prompt_sent = true;
    request.stream->PushPrompt(request.info);
  }
}

void EngineLoop::BuildInput(const StepPlan& plan, StepInput* to) {
  StepInput& input = *to;
  input.Clear();
  for (const PlannedSequence& planned : plan.sequences) {
    input.max_blocks =
        std::max(input.max_blocks, static_cast<int32_t>(scheduler_.blocks(planned.id).size()));
    input.max_query = std::max(input.max_query, planned.rows);
  }
  input.query_start.push_back(0);
  for (const PlannedSequence& planned : plan.sequences) {
    const Route& route = routes_.at(planned.id);
    ServedRequest::Part& part = route.part();
    const Choice& choice = *part.choice;
    const int32_t known = route.request->prompt_tokens() + choice.generated();
    const int32_t first_row = input.rows();
    const int32_t sequence = input.sequences();
    for (int32_t i = 0; i < planned.rows; ++i) {
      const int32_t position = planned.start + i;
      input.token_ids.push_back(position < known ? choice.token(position) : -1 - part.slot);
      input.positions.push_back(position);
      input.row_sequence.push_back(sequence);
    }
    input.query_start.push_back(input.rows());
    input.context_length.push_back(planned.start + planned.rows);
    const std::span<const int32_t> blocks = scheduler_.blocks(planned.id);
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
      part.slot = static_cast<int32_t>(input.sampling.size());
      input.sampling.push_back(choice.Row(part.drawn++, input.logit_rows.back()));
    }
  }
}

// ---- Tokens out

void EngineLoop::Deliver(const StepPlan& plan) {
  const SteadyTime now = Now();
  size_t score = 0;
  size_t sample = 0;
  for (const PlannedSequence& planned : plan.sequences) {
    const auto route = routes_.find(planned.id);
    if (route == routes_.end()) {  // Ended while the step ran.
      score += static_cast<size_t>(planned.score_end - planned.score_begin);
      sample += planned.draw ? 1 : 0;
      continue;
    }
    ServedRequest& request = *route->second.request;
    const size_t choice = route->second.choice;
    DeliverScores(request, planned, &score);
    if (planned.draw) {
      DeliverToken(planned, output_.samples[sample++], now);
    } else if (request.request.sampling.max_tokens == 0 &&
               planned.start + planned.rows == request.prompt_tokens()) {
      request.parts[choice].choice->End(FinishReason::kLength, &delta_);
      PushDelta(request, choice, now);
    }
  }
}

void EngineLoop::DeliverScores(ServedRequest& request, const PlannedSequence& planned,
                               size_t* score) {
  for (int32_t at = planned.score_begin; at < planned.score_end; ++at) {
    request.info.prompt_logprobs.push_back(std::move(output_.scores[(*score)++]));
  }
  const bool complete =
      static_cast<int32_t>(request.info.prompt_logprobs.size()) == request.prompt_tokens() - 1;
  if (request.scores() && complete && !request.prompt_sent) {
    request.prompt_sent = true;
    request.stream->PushPrompt(std::move(request.info));
  }
}

void EngineLoop::DeliverToken(const PlannedSequence& planned, const SampleResult& drawn,
                              SteadyTime now) {
  const Route route = routes_.at(planned.id);
  ServedRequest& request = *route.request;
  ServedRequest::Part& part = route.part();
  --part.drawn;
  if (!drawn.finite) {
    EndRequest(request, FinishReason::kError,
               absl::InternalError(absl::StrCat("the model's logits for position ",
                                                planned.start + planned.rows,
                                                " have no finite value to draw a token from")));
    return;
  }
  part.choice->Accept(drawn, &delta_);
  ++counters_.generated_tokens;
  ++request.generated;
  if (request.generated == 1) {
    request.first_token_at = now;
    Timings so_far;
    so_far.queue = Seconds(request.started_at - request.submitted_at);
    so_far.prefill = Seconds(now - request.started_at);
    so_far.time_to_first_token = Seconds(now - request.submitted_at);
    observer_->OnFirstToken(so_far);
  }
  if (part.choice->generated() > 1) observer_->OnInterToken(Seconds(now - part.last_token));
  part.last_token = request.last_token_at = now;
  PushDelta(request, route.choice, now);
}

// Hands `delta_` to the reader; it may be the choice's last, and then the request's.
void EngineLoop::PushDelta(ServedRequest& request, size_t choice, SteadyTime now) {
  ServedRequest::Part& part = request.parts[choice];
  const FinishReason finish = delta_.finish;
  const bool full = request.stream->Push(delta_);
  if (finish != FinishReason::kNone) {
    request.worst = std::max(request.worst, finish);
    EndChoice(request, choice);
    if (request.ended == request.parts.size()) Close(request, absl::OkStatus());
    return;
  }
  if (full && !part.paused) {
    part.paused = true;
    scheduler_.Pause(part.sequence, now);
    ++counters_.pauses;
  }
}

void EngineLoop::EndChoice(ServedRequest& request, size_t choice) {
  ServedRequest::Part& part = request.parts[choice];
  scheduler_.Remove(part.sequence);
  routes_.erase(part.sequence);
  part.sequence = 0;
  ++request.ended;
}

void EngineLoop::EndRequest(ServedRequest& request, FinishReason reason, const absl::Status& why) {
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
void EngineLoop::Close(ServedRequest& request, const absl::Status& why) {
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
  int32_t longest = 0;
  for (const ServedRequest::Part& part : request.parts) {
    longest = std::max(longest, part.choice->generated());
  }
  observer_->OnFinished({request.worst, end.usage, end.timings, longest});
  request.stream->Close(std::move(end));
  requests_.erase(requests_.find(request.id));
  std::lock_guard lock(shared_->mutex);
  if (--shared_->unfinished == 0) shared_->idle.notify_all();
}

void EngineLoop::EndAll(const absl::Status& why) {
  while (!requests_.empty()) {
    EndRequest(*requests_.begin()->second, FinishReason::kShutdown, why);
  }
}

void EngineLoop::EndEverything(const absl::Status& why) {
  TakeInbox();
  EndAll(why);
  Publish();
}

void EngineLoop::Fail(const absl::Status& status) {
  {
    std::lock_guard lock(shared_->mutex);
    shared_->state = EngineState::kFailed;
    shared_->failure = status;
  }
  // Nothing enters any more; what is in the inbox is ended with the rest.
  EndEverything(absl::UnavailableError(absl::StrCat("the engine failed: ", status.message())));
  step_began_.store(0, std::memory_order_relaxed);
}

void EngineLoop::Publish() {
  counters_.running = scheduler_.running();
  counters_.paused = scheduler_.paused();
  counters_.waiting = scheduler_.waiting();
  counters_.queued_tokens = scheduler_.queued_tokens();
  counters_.kv_blocks_used = scheduler_.kv().used();
  counters_.kv_blocks_total = scheduler_.kv().total();
  counters_.preemptions = scheduler_.preemptions();
  const SteadyTime now = Now();
  std::lock_guard lock(shared_->mutex);
  if (counters_.steps != shared_->stats.steps) shared_->last_step_end = now;
  shared_->stats = counters_;
  shared_->waiting_sequences = counters_.waiting;
  shared_->waiting_tokens = counters_.queued_tokens;
}

void EngineLoop::Run() {
  for (;;) {
    const bool computed = Step();
    std::unique_lock lock(shared_->mutex);
    if (shared_->stop) return;
    if (computed) continue;
    const bool stalled = shared_->unfinished > 0;
    shared_->work.wait_for(lock, stalled ? kStalledWait : kIdleWait,
                           [this] { return shared_->stop || !shared_->inbox.empty(); });
    if (shared_->stop) return;
  }
}

}  // namespace nibble
