// SPDX-License-Identifier: Apache-2.0
#include "services/generation/call.h"

#include <utility>

namespace nibble {
namespace {

constexpr std::chrono::milliseconds kPoolRetry{1000};

std::string_view RejectionReason(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnimplemented:
      return "invalid";
    case absl::StatusCode::kNotFound:
      return "not_found";
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return "unauthorized";
    case absl::StatusCode::kResourceExhausted:
      return "queue_full";
    case absl::StatusCode::kDeadlineExceeded:
      return "deadline";
    case absl::StatusCode::kUnavailable:
      return "unavailable";
    case absl::StatusCode::kCancelled:
      return "cancelled";
    default:
      return "internal";
  }
}

}  // namespace

void CountRejected(Metrics& metrics, const std::string& model, const absl::Status& status) {
  // A name that nobody serves is a caller's word and must not become a label.
  metrics.Add(Metric::kRequestsRejected,
              {model.empty() ? "none" : std::string_view(model), "0", RejectionReason(status)});
}

Call::Call(CallContext context, std::shared_ptr<ServedModel> model, SteadyTime deadline)
    : context_(context), deadline_(deadline), model_(std::move(model)) {}

Call::~Call() = default;

void Call::Start(Prepare prepare) {
  const bool queued = context_.work.TryRun(
      [self = shared_from_this(), prepare = std::move(prepare)] { self->Submit(prepare); });
  if (queued) return;
  Refuse(absl::ResourceExhaustedError("too many requests wait for the tokenizer"), kPoolRetry);
}

void Call::Submit(const Prepare& prepare) {
  bool cancelled;
  {
    std::lock_guard lock(mutex_);
    cancelled = cancelled_;
  }
  if (cancelled) {
    Refuse(absl::CancelledError("cancelled by the caller"), {});
    return;
  }
  absl::StatusOr<GenerationRequest> request = prepare();
  if (!request.ok()) {
    Refuse(request.status(), {});
    return;
  }
  request->deadline = deadline_;
  prompt_ = request->prompt;
  const int32_t max_tokens = request->sampling.max_tokens;
  const int32_t choices = request->sampling.n;
  // The engine's thread must never hold the last reference to a call, and so to a model.
  stream_->OnReady([weak = weak_from_this(), delivery = &context_.delivery] {
    delivery->Run([weak] {
      if (const std::shared_ptr<Call> self = weak.lock()) self->Ready();
    });
  });
  const std::shared_ptr<ServedModel> model = model_;  // Pop may let go of it from here on
  absl::StatusOr<RequestHandle> handle = model->engine().Submit(*std::move(request), stream_);
  if (!handle.ok()) {
    Refuse(handle.status(), RetryAfter(handle.status()));
    return;
  }
  model->CountAccepted(static_cast<int64_t>(prompt_.size()), max_tokens, choices);
  {
    std::lock_guard lock(mutex_);
    handle_ = *handle;
    cancelled = cancelled_;
  }
  if (cancelled) model->engine().Cancel(*handle);
}

void Call::Refuse(const absl::Status& status, std::optional<std::chrono::milliseconds> retry) {
  CountRejected(context_.metrics, model_->name(), status);
  {
    std::lock_guard lock(mutex_);
    model_.reset();
  }
  Refused(status, retry);
}

void Call::Cancel() {
  std::lock_guard lock(mutex_);
  cancelled_ = true;
  if (model_ != nullptr && handle_.id != 0) model_->engine().Cancel(handle_);
}

std::optional<StreamUpdate> Call::Pop() { return stream_->TryPop(); }

void Call::LetGo() {
  std::lock_guard lock(mutex_);
  model_.reset();
}

}  // namespace nibble
