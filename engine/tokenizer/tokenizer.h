// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/tokenizer/gguf_vocab.h"
#include "engine/tokenizer/text.h"

namespace nibble {

class ChatTemplate;
struct TokenizerParts;

// How words are cut when a vocabulary comes as vocab.json + merges.txt, which do not say.
enum class WordSplit { kGpt2, kLlama3, kQwen2 };

struct EncodeOptions {
  // Begin with what the model wants there (usually its BOS token). Not set: as the model says.
  std::optional<bool> add_bos;
  // Turn the text of special tokens ("<|im_start|>") into these tokens. Only for text that the
  // caller vouches for, such as a rendered chat template; in a user's text they stay text.
  bool parse_special = false;
  // Where special tokens stay text all the same: what a user wrote inside a rendered template.
  // Ascending. In ill-formed text, which has other offsets once it is repaired, nothing is parsed.
  absl::Span<const TextRange> literal = {};
};

// Text to token ids and back. Immutable after loading and safe to share between threads.
//
// Reads the formats below and answers as the programs that made them do: the `tokenizers` package
// for tokenizer.json, sentencepiece for tokenizer.model. What a file asks for and this class does
// not know is an error that names it. All files are treated as hostile: sizes are bounded (files
// 256 MiB, ids below 4,194,304), and nothing in them can make loading or encoding crash.
class Tokenizer {
 public:
  // A model directory: tokenizer.json, else tokenizer.model, else vocab.json + merges.txt; with
  // tokenizer_config.json, special_tokens_map.json, added_tokens.json, chat_template.jinja (or
  // .json), generation_config.json and config.json where present. A chat template that does not
  // parse does not fail the load: chat_template() is null and chat_template_status() says why.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromDirectory(
      const std::string& directory);

  // The text of a tokenizer.json: model BPE, see Normalizer and PreTokenizer for the rest.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromTokenizerJson(std::string_view json);

  // The bytes of a tokenizer.model: model type BPE without compiled normalisation rules.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromSentencePiece(std::string_view bytes);

  // The texts of a vocab.json and a merges.txt of a byte-level vocabulary.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromVocabAndMerges(
      std::string_view vocab_json, std::string_view merges_txt, WordSplit split);

  // The errors of CheckGgufVocab, and those of the tokens, scores and merges themselves.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromGguf(const GgufVocab& vocab);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Never fails. Ill-formed UTF-8 is read as U+FFFD, one for each maximal subpart. `text` is less
  // than 2 GiB. Time is O(n log n).
  std::vector<int32_t> Encode(std::string_view text, const EncodeOptions& options = {}) const;

  // Well-formed UTF-8; bytes that are none become U+FFFD. A tokenizer that put a space in front of
  // the text takes it away again. Ids that are not in the vocabulary give nothing. No
  // "clean-up of tokenization spaces".
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special) const;

  // One more than the largest id. A model's embedding may have more rows.
  int32_t vocab_size() const;

  std::optional<int32_t> bos_id() const;
  // Whether Encode begins with BOS when not told otherwise.
  bool add_bos() const;
  // Tokens that end a generation, ascending; may be empty.
  const std::vector<int32_t>& eos_ids() const;

  // The token as the vocabulary writes it ("▁the", "Ġthe", "<0x0A>"); empty for unknown ids.
  std::string_view TokenText(int32_t id) const;
  // The bytes it stands for in text (" the", "\n"); may be part of a character.
  std::string_view TokenBytes(int32_t id) const;
  // Control tokens, which Decode leaves out when skip_special. False for unknown ids.
  bool IsSpecial(int32_t id) const;
  // The id of a token written as TokenText writes it.
  std::optional<int32_t> FindToken(std::string_view text) const;

  // Null where the model has none, or one that could not be read.
  const ChatTemplate* chat_template() const;
  // Why chat_template() is null: NOT_FOUND or the template's error; OK where it is not null.
  const absl::Status& chat_template_status() const;
  // The texts that chat templates know as bos_token and eos_token; may be empty.
  const std::string& bos_token() const;
  const std::string& eos_token() const;

 private:
  friend class IncrementalDecoder;
  explicit Tokenizer(std::unique_ptr<const TokenizerParts> parts);
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromParts(
      absl::StatusOr<std::unique_ptr<TokenizerParts>> parts);
  // What `id` adds to a text; `strip_space` is cleared by the first token that adds something.
  void AppendTokenBytes(int32_t id, bool skip_special, bool* strip_space, std::string* out) const;

  std::unique_ptr<const TokenizerParts> parts_;
};

// Decodes one sequence token by token. What Push and Flush return, put together, is what Decode
// gives for all the ids; no piece ever ends inside a character. Not thread-safe; one per sequence.
class IncrementalDecoder {
 public:
  struct Options {
    bool skip_special = true;
    // The ids begin a text, so that a space which the tokenizer put in front is taken away. False
    // for a continuation, whose first word keeps the space that separates it from the prompt.
    bool at_start = false;
  };

  IncrementalDecoder(std::shared_ptr<const Tokenizer> tokenizer, const Options& options);
  explicit IncrementalDecoder(std::shared_ptr<const Tokenizer> tokenizer)
      : IncrementalDecoder(std::move(tokenizer), Options()) {}

  // The text that this token completes; often empty.
  std::string Push(int32_t id);
  // The end of the sequence: what is left of an unfinished character, as U+FFFD.
  std::string Flush();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  Options options_;
  bool strip_space_;
  std::string pending_;  // at most 3 bytes between calls
};

}  // namespace nibble
