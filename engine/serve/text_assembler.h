// SPDX-License-Identifier: Apache-2.0
// From one choice's tokens to the text that may be shown: incremental detokenization and stop
// strings. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace nibble {

class Tokenizer;

// Turns tokens into text, one after the other; emits whole UTF-8 characters only.
class TextDecoder {
 public:
  virtual ~TextDecoder() = default;
  // Appends to `text` what `token` completes.
  virtual void Append(int32_t token, std::string* text) = 0;
  // Appends what is left at the end of the output (replacement characters for broken bytes).
  virtual void Flush(std::string* text) = 0;
};

// Makes the decoder of one choice. Called on the engine's thread.
using TextDecoderFactory = std::function<std::unique_ptr<TextDecoder>(bool skip_special_tokens)>;

// The real one: a continuation's text, as IncrementalDecoder gives it.
TextDecoderFactory DecodeWith(std::shared_ptr<const Tokenizer> tokenizer);

// Text that could still become part of a stop string is held back, so a reader never sees a stop
// string's beginning; text behind a stop string is dropped.
class TextAssembler {
 public:
  // decoder may be nullptr: there is no text then. Empty stop strings are not allowed.
  TextAssembler(std::unique_ptr<TextDecoder> decoder, std::vector<std::string> stop,
                bool include_stop);

  // Appends to `text` what may be shown after `token`. Returns whether a stop string was met: the
  // output ends here. With `match_stops` false the token's text is shown and never part of a match.
  bool Append(int32_t token, bool match_stops, std::string* text);
  // The output ended for another reason: appends what was held back.
  void Finish(std::string* text);
  // The stop string that was met, or "".
  const std::string& stop_string() const;

 private:
  size_t HeldBack() const;  // bytes at the end of held_ that may begin a stop string

  std::unique_ptr<TextDecoder> decoder_;
  std::vector<std::string> stop_;
  bool include_stop_;
  size_t longest_ = 0;  // of stop_
  std::string held_;    // decoded, not yet shown
  int met_ = -1;        // index into stop_
};

}  // namespace nibble
