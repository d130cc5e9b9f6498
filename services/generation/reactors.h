// SPDX-License-Identifier: Apache-2.0
// Where calls meet gRPC: one reactor for each shape of answer. A reactor owns itself from Bind
// until OnDone.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "nibble/v1/generation.pb.h"
#include "services/generation/call.h"
#include "services/generation/translate.h"

namespace nibble {

// GenerateStream: a message at a time is on its way; what the engine makes meanwhile is merged.
class StreamReactor final : public grpc::ServerWriteReactor<v1::GenerateStreamResponse>,
                            public Call {
 public:
  StreamReactor(CallContext context, std::shared_ptr<ServedModel> model, SteadyTime deadline,
                const v1::GenerateRequest& request, grpc::CallbackServerContext* rpc);

  // The reactor, which lives until gRPC is done with it.
  static grpc::ServerWriteReactor<v1::GenerateStreamResponse>* Bind(
      std::shared_ptr<StreamReactor> reactor);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void Refused(const absl::Status& status, std::optional<std::chrono::milliseconds> retry) override;
  void Ready() override;
  void GoOnLocked();
  void TakeLocked();

  const bool echo_prompt_;
  grpc::CallbackServerContext* const rpc_;
  std::shared_ptr<StreamReactor> self_;
  std::mutex mutex_;  // guards what follows
  Finishes finishes_;
  std::deque<v1::GenerateStreamResponse> queue_;
  v1::GenerateStreamResponse writing_;
  bool busy_ = false;    // writing_ is on its way
  bool broken_ = false;  // the caller is gone
  std::optional<absl::Status> end_;
};

// Generate and Score: everything in one answer.
class UnaryReactor : public grpc::ServerUnaryReactor, public Call {
 public:
  UnaryReactor(CallContext context, std::shared_ptr<ServedModel> model, SteadyTime deadline,
               grpc::CallbackServerContext* rpc)
      : Call(context, std::move(model), deadline), rpc_(rpc) {}

  static grpc::ServerUnaryReactor* Bind(std::shared_ptr<UnaryReactor> reactor);

  void OnCancel() override;
  void OnDone() override;

 protected:
  // Adds an update, which may be the last, to the answer.
  virtual void Take(const StreamUpdate& update) = 0;

 private:
  void Refused(const absl::Status& status, std::optional<std::chrono::milliseconds> retry) override;
  void Ready() override;

  grpc::CallbackServerContext* const rpc_;
  std::shared_ptr<UnaryReactor> self_;
  std::mutex mutex_;  // updates are taken one after the other
};

class GenerateReactor final : public UnaryReactor {
 public:
  GenerateReactor(CallContext context, std::shared_ptr<ServedModel> model, SteadyTime deadline,
                  const v1::GenerateRequest& request, v1::GenerateResponse* response,
                  grpc::CallbackServerContext* rpc);

 private:
  void Take(const StreamUpdate& update) override;
  const bool echo_prompt_;
  v1::GenerateResponse* const response_;
  Finishes finishes_;
};

class ScoreReactor final : public UnaryReactor {
 public:
  ScoreReactor(CallContext context, std::shared_ptr<ServedModel> model, SteadyTime deadline,
               v1::ScoreResponse* response, grpc::CallbackServerContext* rpc)
      : UnaryReactor(context, std::move(model), deadline, rpc), response_(response) {}

 private:
  void Take(const StreamUpdate& update) override;
  v1::ScoreResponse* const response_;
};

}  // namespace nibble
