// SPDX-License-Identifier: Apache-2.0
// One request in flight, over gRPC's callback API: thousands of them need no threads of their own.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "loadtest/options.h"
#include "loadtest/schedule.h"
#include "nibble/v1/generation.grpc.pb.h"

namespace nibble::load {

using Clock = std::chrono::steady_clock;

// What became of a request. Times in seconds from the moment it was to be sent.
struct Outcome {
  std::string status;  // "OK", "RESOURCE_EXHAUSTED", ...; "ABORTED_BY_CLIENT" if we cancelled it
  std::string finish;  // "stop" or "length" where status is OK
  std::string message;
  int64_t prompt_tokens = 0;
  int64_t tokens = 0;
  double first_token = -1;  // -1: there was none
  double end = 0;
  std::vector<double> gaps;  // between tokens
};

class Request final : public grpc::ClientReadReactor<v1::GenerateStreamResponse> {
 public:
  // Sends it now; `done` is called once, on a thread of gRPC, and the request is gone after that.
  static void Send(v1::GenerationService::Stub& stub, const Options& options, const Plan& plan,
                   Clock::time_point intended, std::function<void(Outcome)> done);

  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  Request(const Options& options, const Plan& plan, Clock::time_point intended,
          std::function<void(Outcome)> done);
  double Elapsed() const;

  const Clock::time_point intended_;
  const std::optional<int32_t> abort_after_;
  const std::function<void(Outcome)> done_;
  grpc::ClientContext context_;
  v1::GenerateRequest request_;
  v1::GenerateStreamResponse response_;
  Outcome outcome_;
  double last_ = 0;
  bool cancelled_ = false;
};

}  // namespace nibble::load
