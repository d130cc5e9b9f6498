// SPDX-License-Identifier: Apache-2.0
// From a conversation to token ids, through the model's chat template.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble {

// One message of a conversation.
struct ChatTurn {
  std::string role;
  std::string content;
};

// Immutable and thread-safe.
class ChatPrompt {
 public:
  explicit ChatPrompt(std::shared_ptr<const Tokenizer> tokenizer);

  // Renders and tokenizes. Special tokens that the template writes become those tokens; spelled out
  // inside a message they stay text, unless `parse_special`. `open_turn`: end where the assistant's
  // answer begins. `rendered`, if given, receives the text. FailedPrecondition without a usable
  // template; InvalidArgument if the template refuses.
  absl::StatusOr<std::vector<int32_t>> Encode(const std::vector<ChatTurn>& turns, bool open_turn,
                                              bool parse_special, std::string* rendered) const;

 private:
  std::string Guard(std::string_view content) const;

  const std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<std::string> special_;  // texts of the special tokens, longest first
};

}  // namespace nibble
