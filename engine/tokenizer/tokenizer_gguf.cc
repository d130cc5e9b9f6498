// SPDX-License-Identifier: Apache-2.0
//
// Tokenizers from the two kinds of vocabulary in GGUF files.

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/base/cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/gguf_vocab.h"
#include "engine/tokenizer/sentencepiece_model.h"
#include "engine/tokenizer/tokenizer_parts.h"
#include "engine/tokenizer/utf8.h"

namespace nibble {
namespace {

absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromGgufScores(const GgufVocab& vocab) {
  const size_t count = vocab.tokens.size();
  SentencePieceModel model;
  model.model_type = SentencePieceModel::ModelType::kBpe;
  model.byte_fallback = true;
  model.remove_extra_whitespaces = false;
  model.add_dummy_prefix = vocab.add_space_prefix.value_or(true);
  model.unk_id = vocab.unknown_token_id.value_or(0);
  model.bos_id = vocab.bos_token_id.value_or(1);
  model.eos_id = vocab.eos_token_id.value_or(2);
  model.pieces.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    SentencePieceModel::Piece piece;
    piece.text = vocab.tokens[i];
    piece.score = vocab.scores[i];
    piece.type = vocab.TypeOf(i);
    if (piece.text.empty() || piece.text.size() > kMaxPieceBytes || !IsValidUtf8(piece.text)) {
      return absl::InvalidArgumentError(Cat("tokenizer.ggml.tokens entry ", i, " has ",
                                            piece.text.size(), " bytes; it must be 1 to ",
                                            kMaxPieceBytes, " bytes of well-formed UTF-8"));
    }
    if (!std::isfinite(piece.score)) {
      return absl::InvalidArgumentError(
          Cat("tokenizer.ggml.scores entry ", i, " is not a finite number"));
    }
    model.pieces.push_back(std::move(piece));
  }
  absl::StatusOr<std::unique_ptr<TokenizerParts>> parts = PartsFromPieces(model);
  if (!parts.ok()) return Within("tokenizer.ggml.tokens", parts.status());
  return parts;
}

absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromGgufMerges(const GgufVocab& vocab) {
  const GgufPre& pre = *FindGgufPre(vocab.pre);
  auto parts = std::make_unique<TokenizerParts>();
  absl::StatusOr<PreTokenizer> pre_tokenizer = PreTokenizer::ByteLevelSplit(pre.expression);
  if (!pre_tokenizer.ok()) return pre_tokenizer.status();
  parts->pre_tokenizer = *std::move(pre_tokenizer);

  for (size_t i = 0; i < vocab.tokens.size(); ++i) {
    const std::string& text = vocab.tokens[i];
    const auto id = static_cast<int32_t>(i);
    if (absl::Status s = AddToken(id, text, parts.get()); !s.ok()) return s;
    const GgufTokenType type = vocab.TypeOf(i);
    const bool added = IsAddedToken(type);
    if (added) {
      AddedToken token;
      token.id = id;
      token.content = text;
      token.special = type != GgufTokenType::kUserDefined;
      parts->added_list.push_back(std::move(token));
    }
    parts->bytes.push_back(added ? text : ByteAlphabetToBytes(text).value_or(text));
  }
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(vocab.merges.size());
  for (const std::string& line : vocab.merges) {
    auto pair = SplitMergeLine(line);
    if (!pair.ok()) return Within("tokenizer.ggml.merges", pair.status());
    merges.push_back(*std::move(pair));
  }
  MergeListOptions options;
  options.ignore_merges = pre.ignore_merges;
  absl::StatusOr<BpeModel> model = BuildMergeListModel(parts->ids, merges, options);
  if (!model.ok()) return Within("tokenizer.ggml.merges", model.status());
  parts->model = *std::move(model);

  if (vocab.bos_token_id.has_value()) {
    parts->bos_id = vocab.bos_token_id;
    parts->prefix = {*vocab.bos_token_id};
    parts->bos_token = parts->texts[static_cast<size_t>(*vocab.bos_token_id)];
  }
  if (vocab.eos_token_id.has_value()) {
    parts->eos_ids = {*vocab.eos_token_id};
    parts->eos_token = parts->texts[static_cast<size_t>(*vocab.eos_token_id)];
  }
  return parts;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromGguf(const GgufVocab& vocab) {
  if (absl::Status s = CheckGgufVocab(vocab); !s.ok()) return s;
  absl::StatusOr<std::unique_ptr<TokenizerParts>> parts =
      vocab.model == "llama" ? PartsFromGgufScores(vocab) : PartsFromGgufMerges(vocab);
  if (!parts.ok()) return parts.status();
  TokenizerParts& p = **parts;
  if (vocab.eot_token_id.has_value()) p.eos_ids.push_back(*vocab.eot_token_id);
  std::sort(p.eos_ids.begin(), p.eos_ids.end());
  p.eos_ids.erase(std::unique(p.eos_ids.begin(), p.eos_ids.end()), p.eos_ids.end());
  p.add_bos = GgufAddsBos(vocab);
  p.chat_template_source = vocab.chat_template;
  return parts;
}

}  // namespace nibble
