// SPDX-License-Identifier: Apache-2.0
//
// Tokenizers from SentencePiece's tokenizer.model and from GGUF's two vocabulary kinds.

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_join.h"
#include "engine/base/cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/sentencepiece_model.h"
#include "engine/tokenizer/text.h"
#include "engine/tokenizer/tokenizer_parts.h"
#include "engine/tokenizer/utf8.h"

namespace nibble {
namespace {

using PieceType = SentencePieceModel::PieceType;

constexpr size_t kMaxPieceBytes = 1024;

// Any two neighbours whose concatenation is a piece may merge; a higher score goes first. So each
// way to cut a piece in two known symbols is one merge. A character that is no piece may still
// begin one, and then gets a symbol of its own.
absl::Status AddScoreMerges(const std::vector<SentencePieceModel::Piece>& pieces,
                            BpeModel::Spec* spec) {
  std::vector<float> scores;
  for (const auto& [text, id] : spec->pieces) {
    scores.push_back(pieces[static_cast<size_t>(id)].score);
  }
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());

  spec->unlisted_base = static_cast<int32_t>(pieces.size());
  TextMap<int32_t> unlisted;
  const auto symbol_of = [&](std::string_view text) -> int32_t {
    if (const auto it = spec->pieces.find(text); it != spec->pieces.end()) return it->second;
    if (DecodeUtf8(text, 0).size != text.size()) return -1;
    const auto [it, inserted] =
        unlisted.try_emplace(text, spec->unlisted_base + static_cast<int32_t>(unlisted.size()));
    if (inserted) spec->unlisted.emplace_back(text);
    return it->second;
  };

  for (size_t id = 0; id < pieces.size(); ++id) {
    const std::string& text = pieces[id].text;
    const auto known = spec->pieces.find(text);
    if (known == spec->pieces.end() || known->second != static_cast<int32_t>(id)) continue;
    const auto rank = static_cast<uint32_t>(
        std::lower_bound(scores.begin(), scores.end(), pieces[id].score, std::greater<>()) -
        scores.begin());
    for (size_t cut = DecodeUtf8(text, 0).size; cut < text.size();
         cut += DecodeUtf8(text, cut).size) {
      const std::string_view view = text;
      const int32_t left = symbol_of(view.substr(0, cut));
      if (left < 0) continue;
      const int32_t right = symbol_of(view.substr(cut));
      if (right < 0) continue;
      spec->merges.push_back({left, right, rank, static_cast<int32_t>(id)});
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromModel(const SentencePieceModel& model) {
  if (model.model_type != SentencePieceModel::ModelType::kBpe) {
    return absl::InvalidArgumentError(Cat("tokenizer.model: trainer_spec.model_type is ",
                                          static_cast<int>(model.model_type),
                                          "; supported is 2 (BPE)"));
  }
  if (!model.charsmap.empty()) {
    return absl::InvalidArgumentError(
        "tokenizer.model: normalizer_spec has compiled rules (precompiled_charsmap); supported is "
        "the identity");
  }
  if (!model.escape_whitespaces || model.whitespace_as_suffix) {
    return absl::InvalidArgumentError(
        "tokenizer.model: escape_whitespaces = false and treat_whitespace_as_suffix = true are not "
        "supported");
  }

  auto parts = std::make_unique<TokenizerParts>();
  parts->normalizer =
      Normalizer::SentencePiece(model.add_dummy_prefix, model.remove_extra_whitespaces);
  parts->strip_leading_space = model.add_dummy_prefix;

  BpeModel::Spec spec;
  spec.fuse_unk = true;
  const auto count = static_cast<int32_t>(model.pieces.size());
  for (int32_t id = 0; id < count; ++id) {
    const SentencePieceModel::Piece& piece = model.pieces[static_cast<size_t>(id)];
    if (absl::Status s = AddToken(id, piece.text, parts.get()); !s.ok()) return s;
    std::string bytes = MarksToSpaces(piece.text);
    switch (piece.type) {
      case PieceType::kNormal:
      case PieceType::kUnused:
        if (!spec.pieces.try_emplace(piece.text, id).second) {
          return absl::InvalidArgumentError(Cat("tokenizer.model: piece ", id, " ('",
                                                piece.text.substr(0, 64), "') is there twice"));
        }
        if (piece.type == PieceType::kUnused) spec.unused.insert(id);
        break;
      case PieceType::kUserDefined: {
        AddedToken token;
        token.id = id;
        token.content = piece.text;
        token.normalized = true;
        parts->added_list.push_back(std::move(token));
        break;
      }
      case PieceType::kUnknown:
      case PieceType::kControl: {
        AddedToken token;
        token.id = id;
        token.content = piece.text;
        token.special = true;
        parts->added_list.push_back(std::move(token));
        bytes = piece.text;
        break;
      }
      case PieceType::kByte: {
        const std::optional<uint8_t> byte = ParseByteToken(piece.text);
        if (!byte.has_value()) {
          return absl::InvalidArgumentError(
              Cat("tokenizer.model: piece ", id, " has type BYTE and the text '",
                  piece.text.substr(0, 64), "', expected <0x00> to <0xFF>"));
        }
        if (model.byte_fallback) spec.byte_ids[*byte] = id;
        bytes = std::string(1, static_cast<char>(*byte));
        break;
      }
    }
    parts->bytes.push_back(std::move(bytes));
  }
  const auto in_range = [count](int32_t id) { return id >= 0 && id < count; };
  if (in_range(model.unk_id)) spec.unk_id = model.unk_id;
  if (absl::Status s = AddScoreMerges(model.pieces, &spec); !s.ok()) return s;
  parts->model = BpeModel(std::move(spec));
  if (in_range(model.bos_id)) {
    parts->bos_id = model.bos_id;
    parts->prefix = {model.bos_id};
    parts->add_bos = true;
    parts->bos_token = parts->texts[static_cast<size_t>(model.bos_id)];
  }
  if (in_range(model.eos_id)) {
    parts->eos_ids = {model.eos_id};
    parts->eos_token = parts->texts[static_cast<size_t>(model.eos_id)];
  }
  return parts;
}

absl::Status GgufError(std::string_view key, std::string_view problem) {
  return absl::InvalidArgumentError(Cat("tokenizer.ggml.", key, " ", problem));
}

absl::Status CheckGguf(const GgufVocab& vocab) {
  const size_t count = vocab.tokens.size();
  if (count == 0 || count > static_cast<size_t>(kMaxTokenId) + 1) {
    return GgufError("tokens", Cat("has ", count, " entries, allowed are 1 to ", kMaxTokenId + 1));
  }
  if (!vocab.token_type.empty() && vocab.token_type.size() != count) {
    return GgufError("token_type",
                     Cat("has ", vocab.token_type.size(), " entries, tokens has ", count));
  }
  const std::pair<const char*, const std::optional<int32_t>*> ids[] = {
      {"bos_token_id", &vocab.bos_token_id},
      {"eos_token_id", &vocab.eos_token_id},
      {"eot_token_id", &vocab.eot_token_id},
      {"unknown_token_id", &vocab.unknown_token_id}};
  for (const auto& [key, id] : ids) {
    if (id->has_value() && (**id < 0 || static_cast<size_t>(**id) >= count)) {
      return GgufError(key, Cat("is ", **id, ", allowed are 0 to ", count - 1));
    }
  }
  for (size_t i = 0; i < vocab.token_type.size(); ++i) {
    if (vocab.token_type[i] < 1 || vocab.token_type[i] > 6) {
      return GgufError("token_type",
                       Cat("of token ", i, " is ", vocab.token_type[i], ", allowed are 1 to 6"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromGgufScores(const GgufVocab& vocab) {
  const size_t count = vocab.tokens.size();
  if (vocab.scores.size() != count) {
    return GgufError("scores", Cat("has ", vocab.scores.size(), " entries, tokens has ", count));
  }
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
    if (!vocab.token_type.empty()) piece.type = static_cast<PieceType>(vocab.token_type[i]);
    if (piece.text.empty() || piece.text.size() > kMaxPieceBytes || !IsValidUtf8(piece.text)) {
      return GgufError("tokens",
                       Cat("entry ", i, " has ", piece.text.size(), " bytes; it must be 1 to ",
                           kMaxPieceBytes, " bytes of well-formed UTF-8"));
    }
    if (!std::isfinite(piece.score)) {
      return GgufError("scores", Cat("entry ", i, " is not a finite number"));
    }
    model.pieces.push_back(std::move(piece));
  }
  return PartsFromModel(model);
}

struct PreRow {
  const char* name;
  const char* expression;
  bool nfc;
};

absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromGgufMerges(const GgufVocab& vocab) {
  static constexpr PreRow kPre[] = {
      {"gpt-2", kGpt2Split, false},
      {"llama-bpe", kLlama3Split, false},
      {"llama3", kLlama3Split, false},
      {"llama-v3", kLlama3Split, false},
      {"qwen2", kQwen2Split, false},
      {"smaug-bpe", kLlama3Split, false},
      {"deepseek-r1-qwen", kQwen2Split, false},
  };
  const PreRow* row = std::find_if(std::begin(kPre), std::end(kPre),
                                   [&](const PreRow& r) { return vocab.pre == r.name; });
  if (row == std::end(kPre)) {
    std::vector<std::string> names;
    for (const PreRow& r : kPre) names.push_back(r.name);
    return GgufError(
        "pre", Cat("is '", vocab.pre.substr(0, 64), "'; known are ", absl::StrJoin(names, ", ")));
  }
  auto parts = std::make_unique<TokenizerParts>();
  absl::StatusOr<PreTokenizer> pre_tokenizer = PreTokenizer::ByteLevelSplit(row->expression);
  if (!pre_tokenizer.ok()) return pre_tokenizer.status();
  parts->pre_tokenizer = *std::move(pre_tokenizer);

  for (size_t i = 0; i < vocab.tokens.size(); ++i) {
    const std::string& text = vocab.tokens[i];
    const auto id = static_cast<int32_t>(i);
    if (absl::Status s = AddToken(id, text, parts.get()); !s.ok()) return s;
    const int32_t type = vocab.token_type.empty() ? 1 : vocab.token_type[i];
    const bool added = type == 2 || type == 3 || type == 4;
    if (added) {
      AddedToken token;
      token.id = id;
      token.content = text;
      token.special = type != 4;
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
  options.ignore_merges = row->expression == kLlama3Split;
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

absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromSentencePiece(std::string_view bytes) {
  absl::StatusOr<SentencePieceModel> model = ParseSentencePieceModel(bytes);
  if (!model.ok()) return model.status();
  return PartsFromModel(*model);
}

absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromGguf(const GgufVocab& vocab) {
  if (absl::Status s = CheckGguf(vocab); !s.ok()) return s;
  absl::StatusOr<std::unique_ptr<TokenizerParts>> parts =
      vocab.model == "llama"  ? PartsFromGgufScores(vocab)
      : vocab.model == "gpt2" ? PartsFromGgufMerges(vocab)
                              : GgufError("model", Cat("is '", vocab.model.substr(0, 64),
                                                       "'; supported are llama, gpt2"));
  if (!parts.ok()) return parts.status();
  TokenizerParts& p = **parts;
  if (vocab.eot_token_id.has_value()) p.eos_ids.push_back(*vocab.eot_token_id);
  std::sort(p.eos_ids.begin(), p.eos_ids.end());
  p.eos_ids.erase(std::unique(p.eos_ids.begin(), p.eos_ids.end()), p.eos_ids.end());
  const bool default_bos = vocab.model == "llama" || (vocab.pre == "llama-bpe");
  p.add_bos = vocab.add_bos_token.value_or(default_bos) && p.bos_id.has_value();
  p.chat_template_source = vocab.chat_template;
  return parts;
}

}  // namespace nibble
