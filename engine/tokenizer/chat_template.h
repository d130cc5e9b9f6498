// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace nibble {

namespace jinja {
struct Template;
}

// What a chat template is rendered with.
struct ChatInput {
  // An array of {"role": ..., "content": ...}; further members reach the template as they are.
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  // An array of tool descriptions, or null for none.
  nlohmann::ordered_json tools;
  // End where the assistant's answer begins.
  bool add_generation_prompt = true;
  std::string bos_token;
  std::string eos_token;
  // Further variables (an object), e.g. {"enable_thinking": false}; may override those above.
  nlohmann::ordered_json extra = nlohmann::ordered_json::object();
  // What strftime_now() shows, in seconds since 1970 UTC. Not set: calling it is an error. Passing
  // it in keeps rendering a pure function.
  std::optional<int64_t> now;
};

// A model's chat template: turns messages into the text the model was trained on. A subset of
// Jinja 3.1 (https://jinja.palletsprojects.com) with the settings that the `transformers` package
// renders chat templates with (trim_blocks, lstrip_blocks, its tojson filter).
//
//   statements  for (filter, else, unpacking), if, set (also block and namespace), macro, with,
//               filter, raw, break, continue, generation
//   expressions all operators of Jinja, slices, ternaries, calls, filters, tests
//   functions   range, namespace, dict, raise_exception, strftime_now
//   filters, tests, methods: see template_filters.cc, template_tests.cc, template_methods.cc
//
// Anything else is an INVALID_ARGUMENT error that names it and its line. Templates are untrusted:
// they see nothing but their input, change nothing, and are bounded in source (256 KiB), nesting,
// steps (10 million), memory built (256 MiB) and output (16 MiB); past a bound rendering fails with
// RESOURCE_EXHAUSTED. Immutable and thread-safe; copies share the parsed form.
class ChatTemplate {
 public:
  static absl::StatusOr<ChatTemplate> Parse(std::string_view source);

  // INVALID_ARGUMENT where the template calls raise_exception or goes wrong on this input.
  absl::StatusOr<std::string> Render(const ChatInput& input) const;

  // The same with nothing but these variables (an object).
  absl::StatusOr<std::string> RenderVariables(const nlohmann::ordered_json& variables,
                                              std::optional<int64_t> now = std::nullopt) const;

 private:
  explicit ChatTemplate(std::shared_ptr<const jinja::Template> parsed);

  std::shared_ptr<const jinja::Template> parsed_;
};

}  // namespace nibble
