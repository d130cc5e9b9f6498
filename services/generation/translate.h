// SPDX-License-Identifier: Apache-2.0
// Between the contract and the engine: requests in, output out. The service's own limits are
// enforced here, before any work is done; the engine checks the rest.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/serve/engine.h"
#include "nibble/v1/generation.pb.h"
#include "services/common/settings.h"
#include "services/generation/model_registry.h"
#include "services/generation/served_model.h"

namespace nibble {

// What can be checked without a model and without touching the text: cheap. InvalidArgument names
// field, value and range.
absl::Status CheckRequest(const v1::GenerateRequest& request, const Settings& settings);
absl::Status CheckRequest(const v1::ScoreRequest& request, const Settings& settings);
absl::Status CheckRequest(const v1::TokenizeRequest& request, const Settings& settings);

// Tokenizes and fills in defaults; takes time in proportion to the text. The request is then valid
// for the model's engine, as far as ServedModel::engine().Validate can tell.
absl::StatusOr<GenerationRequest> ToEngine(const v1::GenerateRequest& request,
                                           const ServedModel& model, const Settings& settings);
absl::StatusOr<GenerationRequest> ToEngine(const v1::ScoreRequest& request,
                                           const ServedModel& model, const Settings& settings);
absl::Status Tokenize(const v1::TokenizeRequest& request, const ServedModel& model,
                      v1::TokenizeResponse* response);

// `prompt` holds the ids if the prompt's log-probabilities or an echo were asked for.
void ToProto(const PromptInfo& info, const std::vector<int32_t>& prompt, bool echo,
             const Tokenizer& tokenizer, v1::PromptInfo* out);
void ToProto(const Delta& delta, const Tokenizer& tokenizer, v1::Delta* out);
void ToProto(const StreamEnd& end, v1::Usage* out);
void ToProto(const ServedModelView& view, int64_t memory_budget_bytes, v1::ServedModel* out);
v1::FinishReason ToProto(FinishReason reason);

// How the choices of one request ended, gathered from its deltas.
class Finishes {
 public:
  explicit Finishes(int32_t n);
  void See(const Delta& delta);
  const std::vector<v1::ChoiceFinish>& choices() const { return choices_; }

 private:
  std::vector<v1::ChoiceFinish> choices_;
};

}  // namespace nibble
