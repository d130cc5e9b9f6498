// SPDX-License-Identifier: Apache-2.0
// The service over loopback, in this process; what needs a whole server is in e2e_test.py.
#include "services/generation/generation_service.h"

#include <gmock/gmock.h>
#include <google/protobuf/empty.pb.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <memory>
#include <string>
#include <thread>

#include "nibble/v1/generation.grpc.pb.h"
#include "tests/services/generation/demo_model.h"

namespace nibble {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

class GenerationServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Start();
    ASSERT_TRUE(server_->LoadAndWait("demo", "demo").ok());
  }
  void TearDown() override {
    release_.set_value();
    if (listener_ != nullptr) listener_->Shutdown(milliseconds(0));
  }
  void Start() {
    authorizer_ = *Authorizer::Make("");
    server_ = std::make_unique<GenerationServer>(
        settings_, *authorizer_,
        [this](const std::string& source) -> absl::StatusOr<ModelSource> {
          if (source == "slow") released_.wait();
          return ModelSource{DemoModelPath(), "", nullptr, nullptr};
        },
        metrics_, health_);
    grpc::Service* const services[] = {server_->service()};
    auto listener = Listener::Start(settings_, "127.0.0.1:0", services, health_, metrics_);
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
    stub_ = v1::GenerationService::NewStub(
        grpc::CreateChannel(listener_->address(), grpc::InsecureChannelCredentials()));
  }

  static v1::GenerateRequest Request(int max_tokens) {
    v1::GenerateRequest request;
    request.set_model("demo");
    request.set_text("The old house");
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_max_tokens(max_tokens);
    request.mutable_stopping()->set_ignore_eos(true);
    return request;
  }
  bool Eventually(const std::function<bool()>& condition) {
    for (int i = 0; i < 2000 && !condition(); ++i) std::this_thread::sleep_for(milliseconds(5));
    return condition();
  }
  bool Exports(const std::string& line) {
    return metrics_.Text().find(line + "\n") != std::string::npos;
  }

  Settings settings_ = TestSettings();
  Metrics metrics_;
  Health health_;
  std::promise<void> release_;
  std::shared_future<void> released_ = release_.get_future().share();
  std::unique_ptr<Authorizer> authorizer_;
  std::unique_ptr<GenerationServer> server_;
  std::unique_ptr<Listener> listener_;
  std::unique_ptr<v1::GenerationService::Stub> stub_;
};

TEST_F(GenerationServiceTest, ACancelledStreamGivesItsBlocksBack) {
  grpc::ClientContext context;
  auto reader = stub_->GenerateStream(&context, Request(900));
  v1::GenerateStreamResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_TRUE(response.has_prompt());
  ASSERT_TRUE(reader->Read(&response));
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] {
    return Exports(
        R"(nibble_requests_finished_total{model_name="demo",engine="0",outcome="cancelled"} 1)");
  }));
  EXPECT_TRUE(Eventually(
      [&] { return Exports(R"(nibble_kv_blocks_used{model_name="demo",engine="0"} 0)"); }));
  EXPECT_TRUE(Exports(R"(nibble_cancel_to_free_seconds_count{model_name="demo",engine="0"} 1)"));
  EXPECT_TRUE(Eventually([&] {
    return Exports(
        R"(nibble_rpcs_finished_total{service="nibble.v1.GenerationService",method="GenerateStream",code="CANCELLED"} 1)");
  }));
}

TEST_F(GenerationServiceTest, EveryAcceptedRequestIsCountedOnceAmongTheOutcomes) {
  v1::GenerateResponse response;
  for (int i = 0; i < 3; ++i) {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Generate(&context, Request(4), &response).ok());
  }
  grpc::ClientContext context;
  v1::GenerateRequest wrong = Request(4);
  wrong.mutable_sampling()->set_top_p(2);
  EXPECT_EQ(stub_->Generate(&context, wrong, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(Exports(R"(nibble_requests_accepted_total{model_name="demo",engine="0"} 3)"));
  EXPECT_TRUE(Exports(
      R"(nibble_requests_finished_total{model_name="demo",engine="0",outcome="length"} 3)"));
  EXPECT_TRUE(Exports(
      R"(nibble_requests_rejected_total{model_name="demo",engine="0",reason="invalid"} 1)"));
  EXPECT_TRUE(
      Exports(R"(nibble_time_to_first_token_seconds_count{model_name="demo",engine="0"} 3)"));
  EXPECT_TRUE(
      Exports(R"(nibble_time_per_output_token_seconds_count{model_name="demo",engine="0"} 3)"));
  EXPECT_TRUE(
      Exports(R"(nibble_request_longest_choice_tokens_sum{model_name="demo",engine="0"} 12)"));
  EXPECT_TRUE(Exports(R"(nibble_request_choices_sum{model_name="demo",engine="0"} 3)"));
  // The engine's own counters are a snapshot of the end of a step.
  EXPECT_TRUE(Eventually([&] {
    return Exports(R"(nibble_generated_tokens_total{model_name="demo",engine="0"} 12)") &&
           Exports(R"(nibble_steps_total{model_name="demo",engine="0"} 12)");
  }));
}

TEST_F(GenerationServiceTest, AMethodThatTheServerDoesNotHaveDoesNotBecomeALabel) {
  using google::protobuf::Empty;
  grpc::TemplatedGenericStub<Empty, Empty> stub(
      grpc::CreateChannel(listener_->address(), grpc::InsecureChannelCredentials()));
  for (const char* method : {"/made.up.Service/MadeUp", "/nibble.v1.GenerationService/MadeUp"}) {
    grpc::ClientContext context;
    Empty message;
    std::promise<grpc::Status> ended;
    stub.UnaryCall(&context, method, {}, &message, &message,
                   [&](grpc::Status status) { ended.set_value(std::move(status)); });
    EXPECT_EQ(ended.get_future().get().error_code(), grpc::StatusCode::UNIMPLEMENTED);
  }
  EXPECT_TRUE(Eventually([&] {
    return Exports(
        R"(nibble_rpcs_finished_total{service="unknown",method="unknown",code="UNIMPLEMENTED"} 2)");
  }));
  EXPECT_EQ(metrics_.Text().find("MadeUp"), std::string::npos);
}

TEST_F(GenerationServiceTest, ANameThatNobodyServesDoesNotBecomeALabel) {
  grpc::ClientContext context;
  v1::GenerateRequest request = Request(1);
  request.set_model("made-up");
  v1::GenerateResponse response;
  EXPECT_EQ(stub_->Generate(&context, request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(metrics_.Text(), ::testing::Not(HasSubstr("made-up")));
}

TEST_F(GenerationServiceTest, ALoadGoesOnWhenItsCallerLeaves) {
  v1::LoadModelRequest request;
  request.set_name("later");
  request.set_source("slow");
  v1::LoadModelResponse response;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + milliseconds(100));
  EXPECT_EQ(stub_->LoadModel(&context, request, &response).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  release_.set_value();
  EXPECT_TRUE(Eventually([&] { return health_.Serving("nibble.v1.GenerationService/later"); }));
  release_ = std::promise<void>();
}

TEST_F(GenerationServiceTest, DrainingLetsAStreamFinishAndTakesNoNewOne) {
  grpc::ClientContext context;
  auto reader = stub_->GenerateStream(&context, Request(400));
  v1::GenerateStreamResponse response;
  ASSERT_TRUE(reader->Read(&response));
  std::thread drain([&] { server_->Drain(milliseconds(30000)); });
  EXPECT_TRUE(Eventually([&] {
    grpc::ClientContext other;
    v1::GenerateResponse answer;
    return stub_->Generate(&other, Request(1), &answer).error_code() ==
           grpc::StatusCode::UNAVAILABLE;
  }));
  int64_t tokens = 0;
  while (reader->Read(&response)) tokens += response.delta().token_ids_size();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, 400);
  drain.join();
}

}  // namespace
}  // namespace nibble
