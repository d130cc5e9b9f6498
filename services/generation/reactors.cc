// SPDX-License-Identifier: Apache-2.0
#include "services/generation/reactors.h"

#include <algorithm>

#include "services/common/grpc_status.h"

namespace nibble {
namespace {

int32_t Choices(const v1::GenerateRequest& request) { return std::max(1, request.n()); }

}  // namespace

// ---- StreamReactor

StreamReactor::StreamReactor(CallContext context, std::shared_ptr<ServedModel> model,
                             SteadyTime deadline, const v1::GenerateRequest& request,
                             grpc::CallbackServerContext* rpc)
    : Call(context, std::move(model), deadline),
      echo_prompt_(request.response().echo_prompt_ids()),
      rpc_(rpc),
      finishes_(Choices(request)) {}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>* StreamReactor::Bind(
    std::shared_ptr<StreamReactor> reactor) {
  StreamReactor* const raw = reactor.get();
  raw->self_ = std::move(reactor);
  return raw;
}

void StreamReactor::Refused(const absl::Status& status,
                            std::optional<std::chrono::milliseconds> retry) {
  Finish(ToGrpc(status, retry, rpc_));
}

void StreamReactor::Ready() {
  std::lock_guard lock(mutex_);
  if (end_) return;
  if (!busy_) {
    GoOnLocked();
  } else if (Ended()) {
    // The reader may never take the message on its way: what is left must not keep the model.
    TakeLocked();
  }
}

void StreamReactor::OnWriteDone(bool ok) {
  std::lock_guard lock(mutex_);
  busy_ = false;
  if (!ok) {
    broken_ = true;
    Cancel();
  }
  GoOnLocked();
}

// Writes the next message, or finishes, or waits for the engine.
void StreamReactor::GoOnLocked() {
  if (queue_.empty() && !end_) TakeLocked();
  if (broken_) queue_.clear();
  if (!queue_.empty()) {
    writing_ = std::move(queue_.front());
    queue_.pop_front();
    busy_ = true;
    StartWrite(&writing_);
  } else if (end_) {
    Finish(ToGrpc(*end_));
  }
}

// Moves what is undelivered into the queue.
void StreamReactor::TakeLocked() {
  const std::optional<StreamUpdate> update = Pop();
  if (!update) return;
  if (update->prompt) {
    ToProto(*update->prompt, prompt(), echo_prompt_, tokenizer(),
            queue_.emplace_back().mutable_prompt());
  }
  for (const Delta& delta : update->deltas) {
    finishes_.See(delta);
    ToProto(delta, tokenizer(), queue_.emplace_back().mutable_delta());
  }
  if (!update->end) return;
  end_ = update->end->status;
  if (end_->ok()) {
    v1::Finish* finish = queue_.emplace_back().mutable_finish();
    ToProto(*update->end, finish->mutable_usage());
    for (const v1::ChoiceFinish& choice : finishes_.choices()) *finish->add_choices() = choice;
  }
  LetGo();
}

void StreamReactor::OnCancel() { Cancel(); }

void StreamReactor::OnDone() { self_.reset(); }

// ---- UnaryReactor

grpc::ServerUnaryReactor* UnaryReactor::Bind(std::shared_ptr<UnaryReactor> reactor) {
  UnaryReactor* const raw = reactor.get();
  raw->self_ = std::move(reactor);
  return raw;
}

void UnaryReactor::Refused(const absl::Status& status,
                           std::optional<std::chrono::milliseconds> retry) {
  Finish(ToGrpc(status, retry, rpc_));
}

void UnaryReactor::Ready() {
  std::lock_guard lock(mutex_);
  while (std::optional<StreamUpdate> update = Pop()) {
    Take(*update);
    if (!update->end) continue;
    LetGo();
    Finish(ToGrpc(update->end->status));
    return;
  }
}

void UnaryReactor::OnCancel() { Cancel(); }

void UnaryReactor::OnDone() { self_.reset(); }

// ---- Answers

GenerateReactor::GenerateReactor(CallContext context, std::shared_ptr<ServedModel> model,
                                 SteadyTime deadline, const v1::GenerateRequest& request,
                                 v1::GenerateResponse* response, grpc::CallbackServerContext* rpc)
    : UnaryReactor(context, std::move(model), deadline, rpc),
      echo_prompt_(request.response().echo_prompt_ids()),
      response_(response),
      finishes_(Choices(request)) {
  for (int32_t i = 0; i < Choices(request); ++i) response_->add_choices();
}

void GenerateReactor::Take(const StreamUpdate& update) {
  if (update.prompt) {
    ToProto(*update.prompt, prompt(), echo_prompt_, tokenizer(), response_->mutable_prompt());
  }
  for (const Delta& delta : update.deltas) {
    finishes_.See(delta);
    v1::Delta piece;
    ToProto(delta, tokenizer(), &piece);
    v1::Choice* choice = response_->mutable_choices(delta.choice);
    choice->mutable_text()->append(piece.text());
    choice->mutable_token_ids()->MergeFrom(piece.token_ids());
    choice->mutable_logprobs()->MergeFrom(piece.logprobs());
  }
  if (!update.end) return;
  ToProto(*update.end, response_->mutable_usage());
  for (const v1::ChoiceFinish& finish : finishes_.choices()) {
    *response_->mutable_choices(finish.choice())->mutable_finish() = finish;
  }
}

void ScoreReactor::Take(const StreamUpdate& update) {
  if (!update.prompt) return;
  v1::PromptInfo info;
  ToProto(*update.prompt, prompt(), false, tokenizer(), &info);
  *response_->mutable_logprobs() = std::move(*info.mutable_logprobs());
  double nll = 0;
  for (const v1::TokenLogprob& token : response_->logprobs()) nll -= token.logprob();
  response_->set_nll(nll);
  response_->set_predictions(std::max(0, response_->logprobs_size() - 1));
}

}  // namespace nibble
