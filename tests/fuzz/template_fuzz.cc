// SPDX-License-Identifier: Apache-2.0

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "engine/tokenizer/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto parsed =
      nibble::ChatTemplate::Parse(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!parsed.ok()) return 0;
  nibble::ChatInput input;
  input.messages = {
      {{"role", "system"}, {"content", "Be kind."}},
      {{"role", "user"}, {"content", "H\u00e9llo, world"}},
      {{"role", "assistant"}, {"content", nullptr}, {"tool_calls", {{{"id", "a"}, {"n", 1.5}}}}}};
  input.tools = {{{"type", "function"}, {"function", {{"name", "f"}, {"parameters", nullptr}}}}};
  input.bos_token = "<s>";
  input.eos_token = "</s>";
  input.now = 1'750'000'000;
  const auto rendered = parsed->Render(input);
  (void)rendered.ok();
  return 0;
}
