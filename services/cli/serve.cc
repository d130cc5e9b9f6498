// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <type_traits>
#include <variant>

#include "engine/base/cat.h"
#include "services/cli/exit_codes.h"
#include "services/cli/server_process.h"
#include "services/cli/verbs.h"
#include "services/common/settings.h"

namespace nibble {
namespace {

void AddSetting(CLI::App& command, const SettingRow& row, Settings& settings) {
  const std::string flag(row.flag);
  CLI::Option* option = std::visit(
      [&](auto field) -> CLI::Option* {
        auto& value = settings.*field;
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, bool>) {
          return command.add_flag(flag, value, std::string(row.help));
        } else if constexpr (std::is_arithmetic_v<T>) {
          return command.add_option(flag, value, Cat(row.help, " (", RangeOf(row), ")"))
              ->capture_default_str();
        } else if constexpr (std::is_same_v<T, std::string>) {
          return command.add_option(flag, value, std::string(row.help))->capture_default_str();
        } else {
          return command.add_option(flag, value, std::string(row.help))
              ->delimiter(',')
              ->capture_default_str();
        }
      },
      row.field);
  option->group(std::string(row.group));
}

}  // namespace

RunVerb AddServe(CLI::App& command) {
  auto settings = std::make_shared<Settings>();
  for (const SettingRow& row : SettingRows()) AddSetting(command, row, *settings);
  command.footer(
      "Prints a line that begins with `ready` when it takes requests. SIGTERM drains it.\n\n"
      "Examples:\n"
      "  nibble serve --data-dir ~/nibble\n"
      "  nibble serve --data-dir ~/nibble --model-root ~/models --load alice=llama-1b\n"
      "  nibble serve --data-dir /var/lib/nibble --address 0.0.0.0:7460 --tls-cert cert.pem \\\n"
      "      --tls-key key.pem --tokens-file tokens");
  return [settings] {
    const absl::Status status = RunServer(*settings);
    if (status.ok()) return kExitOk;
    std::fprintf(stderr, "nibble serve: %s\n", std::string(status.message()).c_str());
    return ExitCodeFor(status);
  };
}

}  // namespace nibble
