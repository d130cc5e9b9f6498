// SPDX-License-Identifier: Apache-2.0
#include "services/common/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include "absl/strings/escaping.h"
#include "engine/base/cat.h"

namespace nibble {
namespace {

spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = spdlog::stderr_color_mt("nibble");
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %^%l%$ %v");
    return made;
  }();
  return *logger;
}

void Write(spdlog::level::level_enum level, std::string_view event, LogFields fields) {
  std::string line(event);
  for (const auto& [name, value] : fields) {
    const bool plain = !value.empty() && value.find_first_of(" \"=\\\n\t\r") == value.npos;
    line.append(Cat(" ", name, "="));
    line.append(plain ? value : Cat("\"", absl::Utf8SafeCEscape(value), "\""));
  }
  Logger().log(level, spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace

void LogInfo(std::string_view event, LogFields fields) {
  Write(spdlog::level::info, event, fields);
}
void LogWarning(std::string_view event, LogFields fields) {
  Write(spdlog::level::warn, event, fields);
}
void LogError(std::string_view event, LogFields fields) {
  Write(spdlog::level::err, event, fields);
}

}  // namespace nibble
