// SPDX-License-Identifier: Apache-2.0
#include "engine/serve/text_assembler.h"

#include <algorithm>
#include <utility>

#include "engine/tokenizer/tokenizer.h"
#include "kernels/check.h"

namespace nibble {
namespace {

class TokenizerDecoder final : public TextDecoder {
 public:
  TokenizerDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special)
      : decoder_(std::move(tokenizer),
                 IncrementalDecoder::Options{.skip_special = skip_special, .at_start = false}) {}
  void Append(int32_t token, std::string* text) override { text->append(decoder_.Push(token)); }
  void Flush(std::string* text) override { text->append(decoder_.Flush()); }

 private:
  IncrementalDecoder decoder_;
};

}  // namespace

TextDecoderFactory DecodeWith(std::shared_ptr<const Tokenizer> tokenizer) {
  return [tokenizer = std::move(tokenizer)](bool skip_special) -> std::unique_ptr<TextDecoder> {
    return std::make_unique<TokenizerDecoder>(tokenizer, skip_special);
  };
}

TextAssembler::TextAssembler(std::unique_ptr<TextDecoder> decoder, std::vector<std::string> stop,
                             bool include_stop)
    : decoder_(std::move(decoder)), stop_(std::move(stop)), include_stop_(include_stop) {
  for (const std::string& text : stop_) {
    NIBBLE_CHECK(!text.empty());
    longest_ = std::max(longest_, text.size());
  }
}

bool TextAssembler::Append(int32_t token, bool match_stops, std::string* text) {
  if (decoder_ == nullptr) return false;
  if (stop_.empty()) {
    decoder_->Append(token, text);
    return false;
  }
  decoder_->Append(token, &held_);
  if (!match_stops) {
    text->append(held_);
    held_.clear();
    return false;
  }
  // The match that begins first ends the output; of two that begin together, the longer one.
  size_t met_at = std::string::npos;
  for (size_t i = 0; i < stop_.size(); ++i) {
    const size_t at = held_.find(stop_[i]);
    if (at == std::string::npos || at > met_at) continue;
    if (at == met_at && stop_[i].size() <= stop_[static_cast<size_t>(met_)].size()) continue;
    met_at = at;
    met_ = static_cast<int>(i);
  }
  if (met_ >= 0) {
    const size_t shown = met_at + (include_stop_ ? stop_string().size() : 0);
    text->append(held_, 0, shown);
    held_.clear();
    return true;
  }
  const size_t kept = HeldBack();
  text->append(held_, 0, held_.size() - kept);
  held_.erase(0, held_.size() - kept);
  return false;
}

size_t TextAssembler::HeldBack() const {
  for (size_t length = std::min(longest_ - 1, held_.size()); length > 0; --length) {
    const std::string_view tail = std::string_view(held_).substr(held_.size() - length);
    for (const std::string& stop : stop_) {
      if (stop.size() > length && std::string_view(stop).substr(0, length) == tail) return length;
    }
  }
  return 0;
}

void TextAssembler::Finish(std::string* text) {
  if (decoder_ == nullptr || met_ >= 0) return;
  text->append(held_);
  held_.clear();
  decoder_->Flush(text);
}

const std::string& TextAssembler::stop_string() const {
  static const std::string none;
  return met_ < 0 ? none : stop_[static_cast<size_t>(met_)];
}

}  // namespace nibble
