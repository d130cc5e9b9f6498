// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <csignal>
#include <map>
#include <string>

#include "services/cli/exit_codes.h"
#include "services/cli/verbs.h"

namespace nibble {
namespace {

struct Verb {
  const char* name;
  const char* summary;
  RunVerb (*add)(CLI::App& command);
};

constexpr Verb kVerbs[] = {
    {"serve", "run the server", AddServe},
    {"worker", "run one of the processes that quantize", AddWorker},
    {"quantize", "submit a quantization job", AddQuantize},
    {"jobs", "list, show, watch and cancel jobs", AddJobs},
    {"models", "push, list, load and delete models and artifacts", AddModels},
    {"generate", "generate text from a prompt", AddGenerate},
    {"chat", "talk to a served model", AddChat},
    {"eval", "measure perplexity, and the distance from another model", AddEval},
    {"inspect", "show what is in a model or artifact", AddInspect},
    {"bench", "measure speed", AddBench},
};

int Main(int argc, char** argv) {
  CLI::App app("nibble quantizes large language models and serves them.", "nibble");
  app.set_version_flag("--version", "nibble " NIBBLE_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 done, 1 failed, 2 wrong command line or input, 3 not found, 4 server not\n"
      "available, 5 not allowed, 6 quality gate failed, 7 cancelled.\n"
      "`nibble VERB --help` shows a verb's options and examples.");
  std::map<const CLI::App*, RunVerb> run;
  for (const Verb& verb : kVerbs) {
    CLI::App* command = app.add_subcommand(verb.name, verb.summary);
    run[command] = verb.add(*command);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return run[app.get_subcommands().front()]();
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  return nibble::Main(argc, argv);
}
