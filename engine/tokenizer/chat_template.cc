// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/chat_template.h"

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/cat.h"
#include "engine/tokenizer/template_interpreter.h"
#include "engine/tokenizer/template_parser.h"

namespace nibble {

ChatTemplate::ChatTemplate(std::shared_ptr<const jinja::Template> parsed)
    : parsed_(std::move(parsed)) {}

absl::StatusOr<ChatTemplate> ChatTemplate::Parse(std::string_view source) {
  absl::StatusOr<std::shared_ptr<const jinja::Template>> parsed = jinja::ParseTemplate(source);
  if (!parsed.ok()) return parsed.status();
  return ChatTemplate(*std::move(parsed));
}

absl::StatusOr<std::string> ChatTemplate::Render(const ChatInput& input) const {
  if (!input.messages.is_array()) {
    return absl::InvalidArgumentError(
        Cat("messages: ", input.messages.type_name(), ", expected an array"));
  }
  if (!input.extra.is_object()) {
    return absl::InvalidArgumentError(
        Cat("template variables: ", input.extra.type_name(), ", expected an object"));
  }
  nlohmann::ordered_json variables = {
      {"messages", input.messages},
      {"tools", input.tools},
      {"add_generation_prompt", input.add_generation_prompt},
      {"bos_token", input.bos_token},
      {"eos_token", input.eos_token},
  };
  for (const auto& [name, value] : input.extra.items()) variables[name] = value;
  return RenderVariables(variables, input.now);
}

absl::StatusOr<std::string> ChatTemplate::RenderVariables(const nlohmann::ordered_json& variables,
                                                          std::optional<int64_t> now) const {
  std::vector<std::pair<std::string, jinja::Value>> converted;
  for (const auto& [name, json] : variables.items()) {
    jinja::Value value;
    if (!jinja::FromJson(json, 0, &value)) {
      return absl::InvalidArgumentError(Cat("template variable '", name.substr(0, 64),
                                            "': nested deeper than ", jinja::kMaxValueDepth));
    }
    converted.emplace_back(name, std::move(value));
  }
  return jinja::RenderTemplate(*parsed_, std::move(converted), now);
}

}  // namespace nibble
