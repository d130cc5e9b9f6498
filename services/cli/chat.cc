// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

#include "services/cli/client.h"
#include "services/cli/exit_codes.h"
#include "services/cli/generate.h"
#include "services/cli/verbs.h"

namespace nibble {
namespace {

struct Options {
  ClientOptions client;
  GenerateFlags flags;
  std::string system;
};

void Say(v1::ChatInput* chat, const char* role, const std::string& content) {
  v1::ChatMessage* message = chat->add_messages();
  message->set_role(role);
  message->set_content(content);
}

int RunChat(const Options& options) {
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Make(options.client);
  if (!client.ok()) return Fail("chat", client.status());
  v1::GenerateRequest request = options.flags.ToRequest();
  v1::ChatInput* chat = request.mutable_chat();
  if (!options.system.empty()) Say(chat, "system", options.system);
  const bool prompt = isatty(STDIN_FILENO) != 0;
  for (std::string line;;) {
    if (prompt) std::fputs("> ", stdout);
    std::fflush(stdout);
    if (!std::getline(std::cin, line)) break;
    if (line.empty()) continue;
    Say(chat, "user", line);
    absl::StatusOr<std::string> answer = StreamToTerminal(**client, request);
    if (!answer.ok()) return Fail("chat", answer.status());
    Say(chat, "assistant", *answer);
  }
  return kExitOk;
}

}  // namespace

RunVerb AddChat(CLI::App& command) {
  auto options = std::make_shared<Options>();
  options->flags.AddTo(command);
  command.add_option("--system", options->system, "what the system message says");
  AddClientOptions(command, &options->client);
  command.footer(
      "Reads one message a line from stdin until it ends. The model needs a chat template.\n\n"
      "Example:\n"
      "  nibble chat --model qwen --system \"Answer in one sentence.\"");
  return [options] { return RunChat(*options); };
}

}  // namespace nibble
