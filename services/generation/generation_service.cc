// SPDX-License-Identifier: Apache-2.0
#include "services/generation/generation_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <future>
#include <utility>

#include "engine/base/cat.h"
#include "nibble/v1/generation.grpc.pb.h"
#include "services/common/grpc_status.h"
#include "services/common/log.h"
#include "services/common/names.h"
#include "services/common/work_pool.h"
#include "services/generation/call.h"
#include "services/generation/reactors.h"
#include "services/generation/translate.h"

namespace nibble {
namespace {

constexpr int kDefaultPageSize = 100;
constexpr int kMaxPageSize = 1000;
constexpr int kMaxDetokenize = 1'000'000;
constexpr char kCollection[] = "servedModels";

// A stream that ends before it began.
class RefusedStream final : public grpc::ServerWriteReactor<v1::GenerateStreamResponse> {
 public:
  explicit RefusedStream(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

std::chrono::milliseconds Milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

class Service final : public v1::GenerationService::CallbackService {
 public:
  Service(const Settings& settings, const Authorizer& authorizer, ModelRegistry& registry,
          Metrics& metrics)
      : settings_(settings),
        authorizer_(authorizer),
        registry_(registry),
        metrics_(metrics),
        work_(settings.pool_threads, static_cast<size_t>(settings.pool_queue)),
        delivery_(1, 0) {}

  // ---- Models

  grpc::ServerUnaryReactor* LoadModel(grpc::CallbackServerContext* context,
                                      const v1::LoadModelRequest* request,
                                      v1::LoadModelResponse* response) override {
    absl::StatusOr<Caller> caller = Authorize(authorizer_, *context, Role::kAdmin);
    if (!caller.ok()) return Answer(context, caller.status());
    absl::StatusOr<std::string> name = ParseName("name", request->name(), kCollection, true);
    if (!name.ok()) return Answer(context, name.status());
    ModelSpec spec;
    spec.source = request->source();
    spec.kv_format = request->kv_format();
    spec.mode = request->mode().empty() ? "fast" : request->mode();
    spec.max_context = request->max_context();
    spec.memory_budget_bytes = request->memory_budget_bytes();
    spec.max_running = request->max_running();
    if (absl::Status status = ValidateModelSpec(spec); !status.ok()) {
      return Answer(context, status);
    }
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    registry_.Load(*name, spec,
                   [this, reactor, response](const absl::StatusOr<ServedModelView>& view) {
                     if (view.ok()) Fill(*view, response->mutable_model());
                     reactor->Finish(ToGrpc(view.status()));
                   });
    return reactor;
  }

  grpc::ServerUnaryReactor* UnloadModel(grpc::CallbackServerContext* context,
                                        const v1::UnloadModelRequest* request,
                                        v1::UnloadModelResponse*) override {
    absl::StatusOr<Caller> caller = Authorize(authorizer_, *context, Role::kAdmin);
    if (!caller.ok()) return Answer(context, caller.status());
    absl::StatusOr<std::string> name = ParseName("name", request->name(), kCollection, true);
    if (!name.ok()) return Answer(context, name.status());
    const double grace =
        request->has_grace_seconds() ? request->grace_seconds() : settings_.grace_seconds;
    if (!(grace >= 0 && grace <= 3600)) {
      return Answer(context, absl::InvalidArgumentError(
                                 Cat("grace_seconds is ", grace, "; it must be 0..3600")));
    }
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    registry_.Unload(*name, Milliseconds(grace),
                     [reactor](const absl::Status& status) { reactor->Finish(ToGrpc(status)); });
    return reactor;
  }

  grpc::ServerUnaryReactor* ListServedModels(grpc::CallbackServerContext* context,
                                             const v1::ListServedModelsRequest* request,
                                             v1::ListServedModelsResponse* response) override {
    absl::StatusOr<Caller> caller = Authorize(authorizer_, *context, Role::kGenerate);
    if (!caller.ok()) return Answer(context, caller.status());
    if (request->page_size() < 0 || request->page_size() > kMaxPageSize) {
      return Answer(context, absl::InvalidArgumentError(Cat("page_size is ", request->page_size(),
                                                            "; it must be 0..", kMaxPageSize)));
    }
    const int size = request->page_size() == 0 ? kDefaultPageSize : request->page_size();
    // The token is the last name of the page before.
    for (const ServedModelView& view : registry_.List()) {
      if (!request->page_token().empty() && view.name <= request->page_token()) continue;
      if (response->models_size() == size) {
        response->set_next_page_token(
            response->models(size - 1).name().substr(sizeof(kCollection)));
        break;
      }
      Fill(view, response->add_models());
    }
    return Answer(context, absl::OkStatus());
  }

  grpc::ServerUnaryReactor* GetServedModel(grpc::CallbackServerContext* context,
                                           const v1::GetServedModelRequest* request,
                                           v1::ServedModel* response) override {
    absl::StatusOr<Caller> caller = Authorize(authorizer_, *context, Role::kGenerate);
    if (!caller.ok()) return Answer(context, caller.status());
    absl::StatusOr<std::string> name = ParseName("name", request->name(), kCollection, true);
    if (!name.ok()) return Answer(context, name.status());
    absl::StatusOr<ServedModelView> view = registry_.Get(*name);
    if (view.ok()) Fill(*view, response);
    return Answer(context, view.status());
  }

  // ---- Generation

  grpc::ServerWriteReactor<v1::GenerateStreamResponse>* GenerateStream(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    absl::StatusOr<std::shared_ptr<ServedModel>> model = Admit(*context, *request);
    if (!model.ok()) return new RefusedStream(ToGrpc(model.status()));
    auto reactor = std::make_shared<StreamReactor>(CallContext{metrics_, work_, delivery_}, *model,
                                                   Deadline(*context), *request, context);
    auto* const bound = StreamReactor::Bind(reactor);
    reactor->Start([this, request, model = *model] { return Prepared(*request, *model); });
    return bound;
  }

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const v1::GenerateRequest* request,
                                     v1::GenerateResponse* response) override {
    absl::StatusOr<std::shared_ptr<ServedModel>> model = Admit(*context, *request);
    if (!model.ok()) return Answer(context, model.status());
    return Run(std::make_shared<GenerateReactor>(CallContext{metrics_, work_, delivery_}, *model,
                                                 Deadline(*context), *request, response, context),
               *request, *model);
  }

  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override {
    absl::StatusOr<std::shared_ptr<ServedModel>> model = Admit(*context, *request);
    if (!model.ok()) return Answer(context, model.status());
    return Run(std::make_shared<ScoreReactor>(CallContext{metrics_, work_, delivery_}, *model,
                                              Deadline(*context), response, context),
               *request, *model);
  }

  // ---- Tokens

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    absl::StatusOr<std::shared_ptr<ServedModel>> model = Admit(*context, *request);
    if (!model.ok()) return Answer(context, model.status());
    return RunOnPool(context, [request, response, model = *model] {
      return nibble::Tokenize(*request, *model, response);
    });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    absl::StatusOr<std::shared_ptr<ServedModel>> model = Admit(*context, *request);
    if (!model.ok()) return Answer(context, model.status());
    return RunOnPool(context, [request, response, model = *model]() -> absl::Status {
      const int32_t vocabulary = model->facts().vocabulary;
      for (int32_t id : request->token_ids()) {
        if (id < 0 || id >= vocabulary) {
          return absl::InvalidArgumentError(
              Cat("token_ids holds ", id, "; it must be 0..", vocabulary - 1));
        }
      }
      const bool skip = !request->has_skip_special_tokens() || request->skip_special_tokens();
      response->set_text(model->tokenizer().Decode(
          {request->token_ids().data(), static_cast<size_t>(request->token_ids_size())}, skip));
      return absl::OkStatus();
    });
  }

 private:
  // Who calls, what for, and whether the request makes sense; all of it cheap.
  template <typename Request>
  absl::StatusOr<std::shared_ptr<ServedModel>> Admit(const grpc::CallbackServerContext& context,
                                                     const Request& request) {
    constexpr bool generates =
        std::is_same_v<Request, v1::GenerateRequest> || std::is_same_v<Request, v1::ScoreRequest>;
    std::string known;
    absl::StatusOr<std::shared_ptr<ServedModel>> model =
        [&]() -> absl::StatusOr<std::shared_ptr<ServedModel>> {
      absl::StatusOr<Caller> caller = Authorize(authorizer_, context, Role::kGenerate);
      if (!caller.ok()) return caller.status();
      absl::StatusOr<std::string> name = ParseName("model", request.model(), kCollection, true);
      if (!name.ok()) return name.status();
      absl::StatusOr<std::shared_ptr<ServedModel>> found = registry_.Find(*name);
      if (!found.ok()) return found.status();
      known = *name;
      if (absl::Status status = Check(request); !status.ok()) return status;
      return found;
    }();
    if (generates && !model.ok()) CountRejected(metrics_, known, model.status());
    return model;
  }

  template <typename Request>
  absl::Status Check(const Request& request) const {
    return CheckRequest(request, settings_);
  }
  absl::Status Check(const v1::DetokenizeRequest& request) const {
    if (request.token_ids_size() <= kMaxDetokenize) return absl::OkStatus();
    return absl::InvalidArgumentError(Cat("the number of token_ids is ", request.token_ids_size(),
                                          "; it must be 0..", kMaxDetokenize));
  }

  // The engine's request, checked by the engine.
  template <typename Request>
  absl::StatusOr<GenerationRequest> Prepared(const Request& request, ServedModel& model) const {
    absl::StatusOr<GenerationRequest> prepared = ToEngine(request, model, settings_);
    if (!prepared.ok()) return prepared.status();
    if (absl::Status status = model.engine().Validate(*prepared); !status.ok()) return status;
    return prepared;
  }

  template <typename Request>
  grpc::ServerUnaryReactor* Run(const std::shared_ptr<UnaryReactor>& reactor,
                                const Request& request, const std::shared_ptr<ServedModel>& model) {
    grpc::ServerUnaryReactor* const bound = UnaryReactor::Bind(reactor);
    reactor->Start([this, &request, model] { return Prepared(request, *model); });
    return bound;
  }

  template <typename Work>
  grpc::ServerUnaryReactor* RunOnPool(grpc::CallbackServerContext* context, Work work) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    if (!work_.TryRun([reactor, work = std::move(work)] { reactor->Finish(ToGrpc(work())); })) {
      reactor->Finish(
          ToGrpc(absl::ResourceExhaustedError("too many requests wait for the tokenizer"),
                 std::chrono::milliseconds(1000), context));
    }
    return reactor;
  }

  // The caller's deadline, or the longest that the server allows.
  SteadyTime Deadline(const grpc::CallbackServerContext& context) const {
    const auto longest = Milliseconds(settings_.max_request_seconds);
    const auto left = context.deadline() - std::chrono::system_clock::now();
    return std::chrono::steady_clock::now() +
           (left < longest ? std::chrono::duration_cast<std::chrono::milliseconds>(left) : longest);
  }

  void Fill(const ServedModelView& view, v1::ServedModel* out) const {
    ToProto(view, settings_.model_memory_bytes, out);
  }

  const Settings& settings_;
  const Authorizer& authorizer_;
  ModelRegistry& registry_;
  Metrics& metrics_;
  WorkPool work_;
  WorkPool delivery_;
};

}  // namespace

struct GenerationServer::Impl {
  Impl(const Settings& settings, const Authorizer& authorizer, Resolver resolver, Metrics& metrics,
       Health& health_board)
      : health(health_board),
        registry(settings, metrics, std::move(resolver),
                 [this](const std::string& name, bool serving) {
                   health.Set(Cat(kGenerationServiceName, "/", name), serving);
                 }),
        service(settings, authorizer, registry, metrics) {}

  Health& health;
  ModelRegistry registry;
  Service service;
};

GenerationServer::GenerationServer(const Settings& settings, const Authorizer& authorizer,
                                   Resolver resolver, Metrics& metrics, Health& health)
    : impl_(std::make_unique<Impl>(settings, authorizer, std::move(resolver), metrics, health)) {
  health.Set(kGenerationServiceName, true);
}

GenerationServer::~GenerationServer() = default;

grpc::Service* GenerationServer::service() { return &impl_->service; }

absl::Status GenerationServer::LoadAndWait(const std::string& name, const std::string& source) {
  if (absl::Status status = CheckIdentifier("--load", name); !status.ok()) return status;
  ModelSpec spec;
  spec.source = source;
  spec.mode = "fast";
  std::promise<absl::Status> done;
  impl_->registry.Load(name, spec, [&done](const absl::StatusOr<ServedModelView>& view) {
    done.set_value(view.status());
  });
  return done.get_future().get();
}

bool GenerationServer::Alive() const { return impl_->registry.Alive(); }

void GenerationServer::Drain(std::chrono::milliseconds grace) { impl_->registry.Drain(grace); }

absl::Status GenerationServer::Failure() const { return impl_->registry.Failure(); }

}  // namespace nibble
