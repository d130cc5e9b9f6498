// SPDX-License-Identifier: Apache-2.0
#include "services/cli/generate.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "nibble/v1/generation.grpc.pb.h"
#include "services/cli/client.h"
#include "services/cli/exit_codes.h"
#include "services/cli/verbs.h"

namespace nibble {
namespace {

struct Options {
  ClientOptions client;
  GenerateFlags flags;
  std::string prompt;
  bool json = false;
};

const char* ReasonName(v1::FinishReason reason) {
  return reason == v1::FINISH_REASON_STOP ? "stop" : "length";
}

nlohmann::json ToJson(const v1::GenerateResponse& response) {
  nlohmann::json choices = nlohmann::json::array();
  for (const v1::Choice& choice : response.choices()) {
    nlohmann::json entry = {{"text", choice.text()},
                            {"token_ids", choice.token_ids()},
                            {"finish_reason", ReasonName(choice.finish().reason())}};
    for (const v1::TokenLogprob& logprob : choice.logprobs()) {
      entry["logprobs"].push_back(
          {{"token_id", logprob.token_id()}, {"logprob", logprob.logprob()}});
    }
    choices.push_back(std::move(entry));
  }
  const v1::Usage& usage = response.usage();
  return {{"choices", std::move(choices)},
          {"seed", response.prompt().seed()},
          {"usage",
           {{"prompt_tokens", usage.prompt_tokens()},
            {"generated_tokens", usage.generated_tokens()},
            {"time_to_first_token_seconds", usage.time_to_first_token_seconds()},
            {"total_seconds", usage.total_seconds()}}}};
}

int RunGenerate(const Options& options) {
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Make(options.client);
  if (!client.ok()) return Fail("generate", client.status());
  v1::GenerateRequest request = options.flags.ToRequest();
  if (options.prompt == "-") {
    request.set_text(std::string(std::istreambuf_iterator<char>(std::cin), {}));
  } else {
    request.set_text(options.prompt);
  }
  if (options.json || request.n() > 1) {
    const auto stub = v1::GenerationService::NewStub((*client)->channel());
    grpc::ClientContext context;
    (*client)->Prepare(&context);
    v1::GenerateResponse response;
    const grpc::Status status = stub->Generate(&context, request, &response);
    if (!status.ok()) return Fail("generate", (*client)->Explain(status));
    if (options.json) {
      std::printf(
          "%s\n",
          ToJson(response).dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    } else {
      for (const v1::Choice& choice : response.choices()) {
        std::printf("--- %d\n%s\n", choice.finish().choice(), choice.text().c_str());
      }
    }
    return kExitOk;
  }
  absl::StatusOr<std::string> text = StreamToTerminal(**client, request);
  if (!text.ok()) return Fail("generate", text.status());
  return kExitOk;
}

}  // namespace

void GenerateFlags::AddTo(CLI::App& command) {
  command.add_option("--model", model, "name it is served under")->required();
  command.add_option("--max-tokens", max_tokens, "most tokens to generate (default: the server's)");
  command.add_option("--temperature", temperature, "0 = always the most probable token")
      ->capture_default_str();
  command.add_option("--top-k", top_k, "draw from the K most probable tokens; 0 = all");
  command.add_option("--top-p", top_p, "draw from the fewest tokens with this probability");
  command.add_option("--min-p", min_p, "draw from tokens this probable relative to the best");
  command.add_option("--repetition-penalty", repetition_penalty, "1 = none");
  command.add_option("--seed", seed, "same seed, same text (default: the server draws one)");
  command.add_option("--stop", stop, "text that ends the output; may be given again");
  command.add_option("-n,--choices", n, "independent outputs")->capture_default_str();
  command.add_flag("--ignore-eos", ignore_eos, "go on after an end-of-sequence token");
}

v1::GenerateRequest GenerateFlags::ToRequest() const {
  v1::GenerateRequest request;
  request.set_model(model);
  request.set_n(n);
  v1::SamplingOptions* sampling = request.mutable_sampling();
  sampling->set_temperature(temperature);
  sampling->set_top_k(top_k);
  if (top_p > 0) sampling->set_top_p(top_p);
  sampling->set_min_p(min_p);
  if (repetition_penalty > 0) sampling->set_repetition_penalty(repetition_penalty);
  if (seed >= 0) sampling->set_seed(static_cast<uint64_t>(seed));
  v1::StoppingOptions* stopping = request.mutable_stopping();
  stopping->set_max_tokens(max_tokens);
  stopping->set_ignore_eos(ignore_eos);
  for (const std::string& text : stop) stopping->add_stop(text);
  return request;
}

absl::StatusOr<std::string> StreamToTerminal(const Client& client,
                                             const v1::GenerateRequest& request) {
  const auto stub = v1::GenerationService::NewStub(client.channel());
  grpc::ClientContext context;
  client.Prepare(&context);
  const auto reader = stub->GenerateStream(&context, request);
  std::string text;
  v1::GenerateStreamResponse response;
  while (reader->Read(&response)) {
    if (!response.has_delta()) continue;
    text += response.delta().text();
    std::fputs(response.delta().text().c_str(), stdout);
    std::fflush(stdout);
  }
  std::fputs("\n", stdout);
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return client.Explain(status);
  return text;
}

RunVerb AddGenerate(CLI::App& command) {
  auto options = std::make_shared<Options>();
  options->flags.AddTo(command);
  command.add_option("prompt", options->prompt, "text to continue; - reads it from stdin")
      ->required();
  command.add_flag("--json", options->json, "one JSON object instead of streamed text");
  AddClientOptions(command, &options->client);
  command.footer(
      "Examples:\n"
      "  nibble generate --model alice \"Once upon a time\"\n"
      "  nibble generate --model alice --temperature 0 --max-tokens 64 --json \"Dear diary,\"\n"
      "  cat letter.txt | nibble generate --model alice --seed 7 -");
  return [options] { return RunGenerate(*options); };
}

}  // namespace nibble
