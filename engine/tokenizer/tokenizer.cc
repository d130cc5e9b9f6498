// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/tokenizer.h"

#include <deque>
#include <utility>

#include "engine/tokenizer/tokenizer_parts.h"
#include "engine/tokenizer/utf8.h"

namespace nibble {

Tokenizer::Tokenizer(std::unique_ptr<const TokenizerParts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::FromParts(
    absl::StatusOr<std::unique_ptr<TokenizerParts>> parts) {
  if (!parts.ok()) return parts.status();
  FinishParts(parts->get());
  return std::shared_ptr<const Tokenizer>(new Tokenizer(*std::move(parts)));
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::FromTokenizerJson(
    std::string_view json) {
  return FromParts(PartsFromTokenizerJson(json));
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::FromSentencePiece(
    std::string_view bytes) {
  return FromParts(PartsFromSentencePiece(bytes));
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::FromVocabAndMerges(
    std::string_view vocab_json, std::string_view merges_txt, WordSplit split) {
  return FromParts(PartsFromVocabAndMerges(vocab_json, merges_txt, split));
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::FromGguf(const GgufVocab& vocab) {
  return FromParts(PartsFromGguf(vocab));
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, const EncodeOptions& options) const {
  std::string repaired;
  bool parse_special = options.parse_special;
  if (!IsValidUtf8(text)) {
    AppendValidUtf8(text, &repaired);
    text = repaired;
    parse_special = parse_special && options.literal.empty();
  }
  const bool add_bos = options.add_bos.value_or(parts_->add_bos);
  std::vector<int32_t> ids;
  if (add_bos) ids = parts_->prefix;

  // Words and cache keys point into these until the end.
  std::deque<std::string> arena;
  BpeModel::Scratch scratch;
  std::vector<AddedTokenSpan> raw_spans;
  std::vector<AddedTokenSpan> spans;
  std::vector<std::string_view> words;

  parts_->added.SplitRaw(text, parse_special, options.literal, &raw_spans);
  for (const AddedTokenSpan& raw : raw_spans) {
    if (raw.id >= 0) {
      ids.push_back(raw.id);
      continue;
    }
    const auto raw_begin = static_cast<size_t>(raw.text.data() - text.data());
    const bool raw_at_start = raw_begin == 0;
    std::string_view normalized = raw.text;
    if (!parts_->normalizer.IsIdentity()) {
      normalized = arena.emplace_back(parts_->normalizer.Apply(raw.text, raw_at_start));
    }
    spans.clear();
    // Normalised text has other offsets: none of it is parsed where some of it is literal.
    const bool literal = Touches(options.literal, raw_begin, raw_begin + raw.text.size());
    parts_->added.SplitNormalized(normalized, parse_special && !literal, &spans);
    for (const AddedTokenSpan& span : spans) {
      if (span.id >= 0) {
        ids.push_back(span.id);
        continue;
      }
      const bool at_start = raw_at_start && span.text.data() == normalized.data();
      words.clear();
      parts_->pre_tokenizer.Split(span.text, at_start, &arena, &words);
      for (const std::string_view word : words) parts_->model.Encode(word, &scratch, &ids);
    }
  }
  if (add_bos) ids.insert(ids.end(), parts_->suffix.begin(), parts_->suffix.end());
  return ids;
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  bool strip_space = parts_->strip_leading_space;
  for (const int32_t id : ids) AppendTokenBytes(id, skip_special, &strip_space, &bytes);
  std::string text;
  AppendValidUtf8(bytes, &text);
  return text;
}

void Tokenizer::AppendTokenBytes(int32_t id, bool skip_special, bool* strip_space,
                                 std::string* out) const {
  const bool special = IsSpecial(id);
  if (skip_special && special) return;
  std::string_view bytes = TokenBytes(id);
  if (bytes.empty()) return;
  if (*strip_space) {
    *strip_space = false;
    if (bytes[0] == ' ') bytes.remove_prefix(1);
  }
  out->append(bytes);
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(parts_->texts.size()); }
std::optional<int32_t> Tokenizer::bos_id() const { return parts_->bos_id; }
bool Tokenizer::add_bos() const { return parts_->add_bos; }
const std::vector<int32_t>& Tokenizer::eos_ids() const { return parts_->eos_ids; }
const std::string& Tokenizer::bos_token() const { return parts_->bos_token; }
const std::string& Tokenizer::eos_token() const { return parts_->eos_token; }

const ChatTemplate* Tokenizer::chat_template() const {
  return parts_->chat_template.has_value() ? &*parts_->chat_template : nullptr;
}
const absl::Status& Tokenizer::chat_template_status() const { return parts_->chat_template_status; }

std::string_view Tokenizer::TokenText(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return parts_->texts[static_cast<size_t>(id)];
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return parts_->bytes[static_cast<size_t>(id)];
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && parts_->special[static_cast<size_t>(id)];
}

std::optional<int32_t> Tokenizer::FindToken(std::string_view text) const {
  const auto it = parts_->ids.find(text);
  if (it == parts_->ids.end()) return std::nullopt;
  return it->second;
}

IncrementalDecoder::IncrementalDecoder(std::shared_ptr<const Tokenizer> tokenizer,
                                       const Options& options)
    : tokenizer_(std::move(tokenizer)),
      options_(options),
      strip_space_(options.at_start && tokenizer_->parts_->strip_leading_space) {}

std::string IncrementalDecoder::Push(int32_t id) {
  tokenizer_->AppendTokenBytes(id, options_.skip_special, &strip_space_, &pending_);
  const size_t complete = pending_.size() - IncompleteUtf8Suffix(pending_);
  std::string text;
  AppendValidUtf8(std::string_view(pending_).substr(0, complete), &text);
  pending_.erase(0, complete);
  return text;
}

std::string IncrementalDecoder::Flush() {
  std::string text;
  AppendValidUtf8(pending_, &text);
  pending_.clear();
  return text;
}

}  // namespace nibble
