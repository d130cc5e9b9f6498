// SPDX-License-Identifier: Apache-2.0
// The verbs of the `nibble` command. Each adds its sub-command to the command line and returns what
// runs it once the command line has been parsed; what it returns is the exit code (exit_codes.h).
// The table of all of them is in main.cc.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace nibble {

using RunVerb = std::function<int()>;

RunVerb AddServe(CLI::App& command);
RunVerb AddWorker(CLI::App& command);
RunVerb AddQuantize(CLI::App& command);
RunVerb AddJobs(CLI::App& command);
RunVerb AddModels(CLI::App& command);
RunVerb AddGenerate(CLI::App& command);
RunVerb AddChat(CLI::App& command);
RunVerb AddEval(CLI::App& command);
RunVerb AddInspect(CLI::App& command);
RunVerb AddBench(CLI::App& command);

}  // namespace nibble
