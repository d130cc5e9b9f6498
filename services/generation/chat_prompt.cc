// SPDX-License-Identifier: Apache-2.0
#include "services/generation/chat_prompt.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "engine/base/cat.h"
#include "engine/tokenizer/chat_template.h"

namespace nibble {
namespace {

// Two noncharacters of Unicode, which no text that is meant for others contains: they fence off,
// through the template, the places where a message spells out a special token.
constexpr std::string_view kOpen = "\xef\xb7\x90";   // U+FDD0
constexpr std::string_view kClose = "\xef\xb7\x91";  // U+FDD1
constexpr std::string_view kReplacement = "\xef\xbf\xbd";

// `text` without its fences; `fenced` receives the ranges of the result that they enclosed.
std::string RemoveFences(std::string_view text, std::vector<TextRange>* fenced) {
  std::string plain;
  while (!text.empty()) {
    const size_t open = std::min(text.find(kOpen), text.size());
    plain.append(text.substr(0, open));
    text.remove_prefix(std::min(open + kOpen.size(), text.size()));
    const size_t close = std::min(text.find(kClose), text.size());
    if (close != 0) fenced->push_back({plain.size(), plain.size() + close});
    plain.append(text.substr(0, close));
    text.remove_prefix(std::min(close + kClose.size(), text.size()));
  }
  return plain;
}

}  // namespace

ChatPrompt::ChatPrompt(std::shared_ptr<const Tokenizer> tokenizer)
    : tokenizer_(std::move(tokenizer)) {
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    if (!tokenizer_->IsSpecial(id)) continue;
    std::string text(tokenizer_->TokenText(id));
    if (!text.empty()) special_.push_back(std::move(text));
  }
  std::stable_sort(special_.begin(), special_.end(),
                   [](const std::string& a, const std::string& b) { return a.size() > b.size(); });
}

std::string ChatPrompt::Guard(std::string_view content) const {
  std::string guarded;
  while (!content.empty()) {
    if (content.starts_with(kOpen) || content.starts_with(kClose)) {
      guarded.append(kReplacement);
      content.remove_prefix(kOpen.size());
      continue;
    }
    const auto found =
        std::find_if(special_.begin(), special_.end(),
                     [&](const std::string& special) { return content.starts_with(special); });
    if (found == special_.end()) {
      guarded.push_back(content.front());
      content.remove_prefix(1);
    } else {
      guarded.append(kOpen).append(*found).append(kClose);
      content.remove_prefix(found->size());
    }
  }
  return guarded;
}

absl::StatusOr<std::vector<int32_t>> ChatPrompt::Encode(const std::vector<ChatTurn>& turns,
                                                        bool open_turn, bool parse_special,
                                                        std::string* rendered) const {
  const ChatTemplate* const chat_template = tokenizer_->chat_template();
  if (chat_template == nullptr) {
    return absl::FailedPreconditionError(Cat("the model has no usable chat template (",
                                             tokenizer_->chat_template_status().message(),
                                             "); send text or token_ids"));
  }
  ChatInput input;
  for (const ChatTurn& turn : turns) {
    const auto guarded = [&](const std::string& said) {
      return parse_special ? said : Guard(said);
    };
    input.messages.push_back({{"role", guarded(turn.role)}, {"content", guarded(turn.content)}});
  }
  input.add_generation_prompt = open_turn;
  input.bos_token = tokenizer_->bos_token();
  input.eos_token = tokenizer_->eos_token();
  input.now = std::chrono::duration_cast<std::chrono::seconds>(
                  std::chrono::system_clock::now().time_since_epoch())
                  .count();
  absl::StatusOr<std::string> text = chat_template->Render(input);
  if (!text.ok()) return text.status();

  std::vector<TextRange> literal;
  std::string plain = RemoveFences(*text, &literal);
  // The template writes BOS itself where the model wants one.
  std::vector<int32_t> ids =
      tokenizer_->Encode(plain, {.add_bos = false, .parse_special = true, .literal = literal});
  if (rendered != nullptr) *rendered = std::move(plain);
  return ids;
}

}  // namespace nibble
