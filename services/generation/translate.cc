// SPDX-License-Identifier: Apache-2.0
#include "services/generation/translate.h"

#include <algorithm>
#include <string>
#include <utility>

#include "engine/base/cat.h"
#include "services/common/names.h"

namespace nibble {
namespace {

absl::Status CheckCount(const char* what, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(Cat(what, " is ", value, "; it must be ", low, "..", high));
}

absl::Status CheckText(const std::string& text, const Settings& settings) {
  return CheckCount("the length of text in bytes", static_cast<int64_t>(text.size()), 0,
                    settings.max_text_bytes);
}

absl::Status CheckTokenIds(const v1::TokenIds& tokens, const Settings& settings) {
  return CheckCount("the number of token_ids", tokens.ids_size(), 1, settings.max_prompt_tokens);
}

absl::Status CheckChat(const v1::ChatInput& chat, const Settings& settings) {
  absl::Status status =
      CheckCount("the number of messages", chat.messages_size(), 1, settings.max_chat_messages);
  if (!status.ok()) return status;
  int64_t bytes = 0;
  for (const v1::ChatMessage& message : chat.messages()) {
    status = CheckCount("the length of a role in bytes",
                        static_cast<int64_t>(message.role().size()), 1, kMaxIdentifier);
    if (!status.ok()) return status;
    bytes += static_cast<int64_t>(message.content().size());
  }
  return CheckCount("the length of all messages in bytes", bytes, 0, settings.max_text_bytes);
}

absl::Status NoInput(const char* fields) {
  return absl::InvalidArgumentError(Cat("input is missing; set one of ", fields));
}

absl::StatusOr<std::vector<int32_t>> EncodeChat(const v1::ChatInput& chat, bool parse_special,
                                                const ServedModel& model, std::string* rendered) {
  std::vector<ChatTurn> turns;
  for (const v1::ChatMessage& message : chat.messages()) {
    turns.push_back({message.role(), message.content()});
  }
  const bool open_turn = !chat.has_add_generation_prompt() || chat.add_generation_prompt();
  return model.chat().Encode(turns, open_turn, parse_special, rendered);
}

absl::Status CheckPromptTokens(const std::vector<int32_t>& prompt, const Settings& settings) {
  return CheckCount("the length of the prompt in tokens", static_cast<int64_t>(prompt.size()), 1,
                    settings.max_prompt_tokens);
}

void ToProto(const TokenLogprob& in, const Tokenizer& tokenizer, v1::TokenLogprob* out) {
  const auto text = [&](int32_t token) { return std::string(tokenizer.TokenBytes(token)); };
  out->set_token_id(in.token);
  out->set_logprob(in.logprob);
  out->set_text(text(in.token));
  for (const TopLogprob& top : in.top) {
    v1::TokenLogprob* entry = out->add_top();
    entry->set_token_id(top.token);
    entry->set_logprob(top.logprob);
    entry->set_text(text(top.token));
  }
}

}  // namespace

absl::Status CheckRequest(const v1::GenerateRequest& request, const Settings& settings) {
  const v1::StoppingOptions& stopping = request.stopping();
  absl::Status input;
  switch (request.input_case()) {
    case v1::GenerateRequest::kText:
      input = CheckText(request.text(), settings);
      break;
    case v1::GenerateRequest::kTokenIds:
      input = CheckTokenIds(request.token_ids(), settings);
      break;
    case v1::GenerateRequest::kChat:
      input = CheckChat(request.chat(), settings);
      break;
    case v1::GenerateRequest::INPUT_NOT_SET:
      input = NoInput("text, token_ids, chat");
      break;
  }
  for (const absl::Status& status :
       {input, CheckCount("n", request.n(), 0, settings.max_choices),
        CheckCount("max_tokens", stopping.max_tokens(), 0, settings.max_tokens),
        CheckCount("the number of stop texts", stopping.stop_size(), 0, settings.max_stop_strings),
        CheckCount("the number of stop_token_ids", stopping.stop_token_ids_size(), 0,
                   settings.max_stop_tokens),
        CheckCount("the number of logit_bias entries", request.sampling().logit_bias_size(), 0,
                   settings.max_logit_bias)}) {
    if (!status.ok()) return status;
  }
  for (const std::string& stop : stopping.stop()) {
    const absl::Status status =
        CheckCount("the length of a stop text in bytes", static_cast<int64_t>(stop.size()), 1,
                   settings.max_stop_bytes);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckRequest(const v1::ScoreRequest& request, const Settings& settings) {
  const absl::Status top = CheckCount("top_logprobs", request.top_logprobs(), 0, kMaxLogprobs);
  if (!top.ok()) return top;
  switch (request.input_case()) {
    case v1::ScoreRequest::kText:
      return CheckText(request.text(), settings);
    case v1::ScoreRequest::kTokenIds:
      return CheckTokenIds(request.token_ids(), settings);
    case v1::ScoreRequest::INPUT_NOT_SET:
      break;
  }
  return NoInput("text, token_ids");
}

absl::Status CheckRequest(const v1::TokenizeRequest& request, const Settings& settings) {
  switch (request.input_case()) {
    case v1::TokenizeRequest::kText:
      return CheckText(request.text(), settings);
    case v1::TokenizeRequest::kChat:
      return CheckChat(request.chat(), settings);
    case v1::TokenizeRequest::INPUT_NOT_SET:
      break;
  }
  return NoInput("text, chat");
}

absl::StatusOr<GenerationRequest> ToEngine(const v1::GenerateRequest& in, const ServedModel& model,
                                           const Settings& settings) {
  GenerationRequest out;
  switch (in.input_case()) {
    case v1::GenerateRequest::kTokenIds:
      out.prompt.assign(in.token_ids().ids().begin(), in.token_ids().ids().end());
      break;
    case v1::GenerateRequest::kChat: {
      absl::StatusOr<std::vector<int32_t>> ids =
          EncodeChat(in.chat(), in.parse_special_tokens(), model, nullptr);
      if (!ids.ok()) return ids.status();
      out.prompt = *std::move(ids);
      break;
    }
    default:
      out.prompt = model.tokenizer().Encode(
          in.text(), {.add_bos = {}, .parse_special = in.parse_special_tokens()});
      break;
  }
  if (absl::Status status = CheckPromptTokens(out.prompt, settings); !status.ok()) return status;

  SamplingParams& to = out.sampling;
  const v1::SamplingOptions& sampling = in.sampling();
  if (sampling.has_temperature()) to.temperature = sampling.temperature();
  to.top_k = sampling.top_k();
  if (sampling.has_top_p()) to.top_p = sampling.top_p();
  to.min_p = sampling.min_p();
  if (sampling.has_repetition_penalty()) to.repetition_penalty = sampling.repetition_penalty();
  to.presence_penalty = sampling.presence_penalty();
  to.frequency_penalty = sampling.frequency_penalty();
  for (const v1::LogitBias& bias : sampling.logit_bias()) {
    to.logit_bias.push_back({bias.token_id(), bias.bias()});
  }
  if (sampling.has_seed()) to.seed = sampling.seed();

  const v1::StoppingOptions& stopping = in.stopping();
  to.stop.assign(stopping.stop().begin(), stopping.stop().end());
  to.stop_token_ids.assign(stopping.stop_token_ids().begin(), stopping.stop_token_ids().end());
  to.ignore_eos = stopping.ignore_eos();
  to.min_tokens = stopping.min_tokens();
  to.max_tokens = stopping.max_tokens();
  if (to.max_tokens == 0) {
    const int64_t room = model.facts().max_context - static_cast<int64_t>(out.prompt.size());
    to.max_tokens = static_cast<int32_t>(std::max<int64_t>(
        1, std::min<int64_t>({settings.default_max_tokens, settings.max_tokens, room})));
  }

  const v1::ResponseOptions& response = in.response();
  if (response.has_logprobs()) to.logprobs = response.logprobs();
  if (response.has_prompt_logprobs()) to.prompt_logprobs = response.prompt_logprobs();
  to.skip_special_tokens = !response.has_skip_special_tokens() || response.skip_special_tokens();
  to.include_stop_str_in_output = response.include_stop_in_output();
  to.n = std::max(1, in.n());
  return out;
}

absl::StatusOr<GenerationRequest> ToEngine(const v1::ScoreRequest& in, const ServedModel& model,
                                           const Settings& settings) {
  GenerationRequest out;
  if (in.has_token_ids()) {
    out.prompt.assign(in.token_ids().ids().begin(), in.token_ids().ids().end());
  } else {
    out.prompt = model.tokenizer().Encode(
        in.text(), {.add_bos = {}, .parse_special = in.parse_special_tokens()});
  }
  if (absl::Status status = CheckPromptTokens(out.prompt, settings); !status.ok()) return status;
  if (out.prompt.size() < 2) {
    return absl::InvalidArgumentError(
        "the input is 1 token; at least 2 are needed for a prediction");
  }
  out.sampling.max_tokens = 0;
  out.sampling.prompt_logprobs = in.top_logprobs();
  return out;
}

absl::Status Tokenize(const v1::TokenizeRequest& request, const ServedModel& model,
                      v1::TokenizeResponse* response) {
  std::vector<int32_t> ids;
  if (request.has_chat()) {
    std::string rendered;
    absl::StatusOr<std::vector<int32_t>> encoded =
        EncodeChat(request.chat(), request.parse_special_tokens(), model, &rendered);
    if (!encoded.ok()) return encoded.status();
    ids = *std::move(encoded);
    response->set_rendered(std::move(rendered));
  } else {
    EncodeOptions options;
    if (request.has_add_bos()) options.add_bos = request.add_bos();
    options.parse_special = request.parse_special_tokens();
    ids = model.tokenizer().Encode(request.text(), options);
    response->set_rendered(request.text());
  }
  response->mutable_token_ids()->Add(ids.begin(), ids.end());
  return absl::OkStatus();
}

void ToProto(const PromptInfo& info, const std::vector<int32_t>& prompt, bool echo,
             const Tokenizer& tokenizer, v1::PromptInfo* out) {
  out->set_prompt_tokens(info.prompt_tokens);
  out->set_seed(info.seed);
  if (echo) out->mutable_token_ids()->Add(prompt.begin(), prompt.end());
  if (info.prompt_logprobs.empty()) return;
  v1::TokenLogprob* first = out->add_logprobs();
  first->set_token_id(prompt[0]);
  first->set_text(std::string(tokenizer.TokenBytes(prompt[0])));
  for (const TokenLogprob& logprob : info.prompt_logprobs) {
    ToProto(logprob, tokenizer, out->add_logprobs());
  }
}

void ToProto(const Delta& delta, const Tokenizer& tokenizer, v1::Delta* out) {
  out->set_choice(delta.choice);
  out->set_text(delta.text);
  out->mutable_token_ids()->Add(delta.tokens.begin(), delta.tokens.end());
  for (const TokenLogprob& logprob : delta.logprobs) {
    ToProto(logprob, tokenizer, out->add_logprobs());
  }
  out->set_finish_reason(ToProto(delta.finish));
}

void ToProto(const StreamEnd& end, v1::Usage* out) {
  out->set_prompt_tokens(end.usage.prompt_tokens);
  out->set_generated_tokens(end.usage.completion_tokens);
  out->set_queue_seconds(end.timings.queue);
  out->set_prefill_seconds(end.timings.prefill);
  out->set_decode_seconds(end.timings.decode);
  out->set_time_to_first_token_seconds(end.timings.time_to_first_token);
  out->set_total_seconds(end.timings.total);
}

void ToProto(const ServedModelView& view, int64_t memory_budget_bytes, v1::ServedModel* out) {
  out->set_name("servedModels/" + view.name);
  out->set_source(view.spec.source);
  switch (view.state) {
    case ServedState::kLoading:
      out->set_state(v1::ServedModel::LOADING);
      break;
    case ServedState::kServing:
      out->set_state(v1::ServedModel::SERVING);
      break;
    case ServedState::kDraining:
      out->set_state(v1::ServedModel::DRAINING);
      break;
    case ServedState::kFailed:
      out->set_state(v1::ServedModel::FAILED);
      break;
  }
  out->set_error(view.error);
  const ModelFacts& facts = view.facts;
  out->set_digest(facts.digest);
  out->set_family(facts.family);
  out->set_scheme(facts.scheme);
  out->set_kv_format(facts.kv_format);
  out->set_mode(facts.mode);
  out->set_device(facts.device);
  out->set_max_context(facts.max_context);
  out->set_vocabulary(facts.vocabulary);
  out->set_weight_bytes(facts.weight_bytes);
  out->set_kv_bytes(facts.kv_bytes);
  out->set_memory_budget_bytes(view.spec.memory_budget_bytes != 0 ? view.spec.memory_budget_bytes
                                                                  : memory_budget_bytes);
  out->set_has_chat_template(facts.has_chat_template);
  out->set_load_seconds(facts.load_seconds);
  out->set_active_requests(view.active_requests);
  const auto since_epoch = facts.load_time.time_since_epoch();
  if (since_epoch.count() == 0) return;
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since_epoch);
  const auto rest = std::chrono::duration_cast<std::chrono::nanoseconds>(since_epoch - seconds);
  out->mutable_load_time()->set_seconds(seconds.count());
  out->mutable_load_time()->set_nanos(static_cast<int32_t>(rest.count()));
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    default:  // everything else is the RPC's status
      return v1::FINISH_REASON_UNSPECIFIED;
  }
}

Finishes::Finishes(int32_t n) : choices_(static_cast<size_t>(n)) {
  for (int32_t i = 0; i < n; ++i) choices_[static_cast<size_t>(i)].set_choice(i);
}

void Finishes::See(const Delta& delta) {
  v1::ChoiceFinish& choice = choices_[static_cast<size_t>(delta.choice)];
  choice.set_generated_tokens(choice.generated_tokens() +
                              static_cast<int32_t>(delta.tokens.size()));
  if (delta.finish == FinishReason::kNone) return;
  choice.set_reason(ToProto(delta.finish));
  choice.set_matched_stop(delta.stop_string);
  if (delta.stop_token >= 0) choice.set_matched_token_id(delta.stop_token);
}

}  // namespace nibble
