// SPDX-License-Identifier: Apache-2.0
//
// Tokenizers from SentencePiece's tokenizer.model.

#include <algorithm>
#include <utility>

#include "engine/base/cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/sentencepiece_model.h"
#include "engine/tokenizer/text.h"
#include "engine/tokenizer/tokenizer_parts.h"
#include "engine/tokenizer/utf8.h"

namespace nibble {
namespace {

using PieceType = SentencePieceModel::PieceType;

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

}  // namespace

absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromPieces(const SentencePieceModel& model) {
  if (model.model_type != SentencePieceModel::ModelType::kBpe) {
    return absl::InvalidArgumentError(Cat("trainer_spec.model_type is ",
                                          static_cast<int>(model.model_type),
                                          "; supported is 2 (BPE)"));
  }
  if (!model.charsmap.empty()) {
    return absl::InvalidArgumentError(
        "normalizer_spec has compiled rules (precompiled_charsmap); supported is "
        "the identity");
  }
  if (!model.escape_whitespaces || model.whitespace_as_suffix) {
    return absl::InvalidArgumentError(
        "escape_whitespaces = false and treat_whitespace_as_suffix = true are not "
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
          return absl::InvalidArgumentError(
              Cat("piece ", id, " ('", piece.text.substr(0, 64), "') is there twice"));
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
          return absl::InvalidArgumentError(Cat("piece ", id, " has type BYTE and the text '",
                                                piece.text.substr(0, 64),
                                                "', expected <0x00> to <0xFF>"));
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

absl::StatusOr<std::unique_ptr<TokenizerParts>> PartsFromSentencePiece(std::string_view bytes) {
  absl::StatusOr<SentencePieceModel> model = ParseSentencePieceModel(bytes);
  if (!model.ok()) return model.status();
  absl::StatusOr<std::unique_ptr<TokenizerParts>> parts = PartsFromPieces(*model);
  if (!parts.ok()) return Within("tokenizer.model", parts.status());
  return parts;
}

}  // namespace nibble
