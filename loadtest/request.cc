// SPDX-License-Identifier: Apache-2.0
#include "loadtest/request.h"

#include <utility>

namespace nibble::load {
namespace {

const char* CodeName(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {"OK",
                                           "CANCELLED",
                                           "UNKNOWN",
                                           "INVALID_ARGUMENT",
                                           "DEADLINE_EXCEEDED",
                                           "NOT_FOUND",
                                           "ALREADY_EXISTS",
                                           "PERMISSION_DENIED",
                                           "RESOURCE_EXHAUSTED",
                                           "FAILED_PRECONDITION",
                                           "ABORTED",
                                           "OUT_OF_RANGE",
                                           "UNIMPLEMENTED",
                                           "INTERNAL",
                                           "UNAVAILABLE",
                                           "DATA_LOSS",
                                           "UNAUTHENTICATED"};
  const auto index = static_cast<size_t>(code);
  return index < std::size(kNames) ? kNames[index] : "UNKNOWN";
}

}  // namespace

void Request::Send(v1::GenerationService::Stub& stub, const Options& options, const Plan& plan,
                   Clock::time_point intended, std::function<void(Outcome)> done) {
  auto* request = new Request(options, plan, intended, std::move(done));
  stub.async()->GenerateStream(&request->context_, &request->request_, request);
  request->StartRead(&request->response_);
  request->StartCall();
}

Request::Request(const Options& options, const Plan& plan, Clock::time_point intended,
                 std::function<void(Outcome)> done)
    : intended_(intended), abort_after_(plan.abort_after), done_(std::move(done)) {
  if (!options.token.empty()) context_.AddMetadata("authorization", "Bearer " + options.token);
  context_.set_deadline(std::chrono::system_clock::now() +
                        std::chrono::milliseconds(static_cast<int64_t>(options.timeout * 1000)));
  request_.set_model(options.model);
  request_.mutable_token_ids()->mutable_ids()->Add(plan.prompt.begin(), plan.prompt.end());
  request_.mutable_sampling()->set_temperature(static_cast<float>(options.temperature));
  request_.mutable_sampling()->set_seed(plan.seed);
  request_.mutable_stopping()->set_max_tokens(plan.max_tokens);
  request_.mutable_stopping()->set_ignore_eos(options.ignore_eos);
  outcome_.prompt_tokens = static_cast<int64_t>(plan.prompt.size());
}

double Request::Elapsed() const {
  return std::chrono::duration<double>(Clock::now() - intended_).count();
}

void Request::OnReadDone(bool ok) {
  if (!ok) return;
  if (response_.has_delta() && response_.delta().token_ids_size() > 0) {
    const double now = Elapsed();
    const int count = response_.delta().token_ids_size();
    // Tokens that came together: the first after the gap since the last, the others share it.
    if (outcome_.first_token < 0) {
      outcome_.first_token = now;
    } else {
      outcome_.gaps.insert(outcome_.gaps.end(), static_cast<size_t>(count), (now - last_) / count);
    }
    last_ = now;
    outcome_.tokens += count;
  } else if (response_.has_finish() && response_.finish().choices_size() > 0) {
    const bool stop = response_.finish().choices(0).reason() == v1::FINISH_REASON_STOP;
    outcome_.finish = stop ? "stop" : "length";
  }
  if (abort_after_ && !cancelled_ && outcome_.tokens >= *abort_after_) {
    cancelled_ = true;
    context_.TryCancel();
  }
  StartRead(&response_);
}

void Request::OnDone(const grpc::Status& status) {
  outcome_.end = Elapsed();
  outcome_.status = CodeName(status.error_code());
  outcome_.message = status.error_message();
  if (cancelled_ && status.error_code() == grpc::StatusCode::CANCELLED) {
    outcome_.status = "ABORTED_BY_CLIENT";
  }
  done_(std::move(outcome_));
  delete this;
}

}  // namespace nibble::load
