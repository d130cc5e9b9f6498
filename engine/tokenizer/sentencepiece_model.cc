// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/sentencepiece_model.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "engine/base/cat.h"
#include "engine/tokenizer/utf8.h"

namespace nibble {
namespace {

constexpr size_t kMaxPieces = size_t{1} << 22;

// One field of a protobuf message: https://protobuf.dev/programming-guides/encoding.
struct WireField {
  uint32_t number = 0;
  uint32_t wire_type = 0;
  uint64_t value = 0;      // varint, fixed32, fixed64
  std::string_view bytes;  // length-delimited
};

class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : bytes_(bytes) {}

  bool AtEnd() const { return pos_ == bytes_.size(); }

  // False where the bytes are cut off or malformed.
  bool Next(WireField* field) {
    uint64_t tag = 0;
    if (!Varint(&tag) || (tag >> 3) == 0 || (tag >> 3) > 0x1FFFFFFF) return false;
    field->number = static_cast<uint32_t>(tag >> 3);
    field->wire_type = static_cast<uint32_t>(tag & 7);
    switch (field->wire_type) {
      case 0:
        return Varint(&field->value);
      case 1:
        return Fixed(8, &field->value);
      case 2: {
        uint64_t size = 0;
        if (!Varint(&size) || size > bytes_.size() - pos_) return false;
        field->bytes = bytes_.substr(pos_, static_cast<size_t>(size));
        pos_ += static_cast<size_t>(size);
        return true;
      }
      case 5:
        return Fixed(4, &field->value);
      default:
        return false;  // groups, which this format never uses
    }
  }

 private:
  bool Varint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (pos_ == bytes_.size()) return false;
      const auto byte = static_cast<uint8_t>(bytes_[pos_++]);
      *value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if ((byte & 0x80) == 0) return true;
    }
    return false;
  }

  bool Fixed(size_t size, uint64_t* value) {
    if (size > bytes_.size() - pos_) return false;
    *value = 0;
    for (size_t i = 0; i < size; ++i) {
      *value |= static_cast<uint64_t>(static_cast<uint8_t>(bytes_[pos_ + i])) << (8 * i);
    }
    pos_ += size;
    return true;
  }

  std::string_view bytes_;
  size_t pos_ = 0;
};

absl::Status Malformed(std::string_view where) {
  return absl::InvalidArgumentError(Cat("tokenizer.model: ", where, " is cut off or malformed"));
}

absl::Status ParsePiece(std::string_view bytes, size_t index, SentencePieceModel::Piece* piece) {
  const std::string where = Cat("piece ", index);
  WireReader reader(bytes);
  uint64_t type = 1;
  while (!reader.AtEnd()) {
    WireField field;
    if (!reader.Next(&field)) return Malformed(where);
    if (field.number == 1 && field.wire_type == 2) {
      piece->text = std::string(field.bytes);
    } else if (field.number == 2 && field.wire_type == 5) {
      const auto bits = static_cast<uint32_t>(field.value);
      std::memcpy(&piece->score, &bits, sizeof(bits));
    } else if (field.number == 3 && field.wire_type == 0) {
      type = field.value;
    }
  }
  if (piece->text.empty() || piece->text.size() > kMaxPieceBytes || !IsValidUtf8(piece->text)) {
    return absl::InvalidArgumentError(Cat("tokenizer.model: the text of ", where, " has ",
                                          piece->text.size(), " bytes; it must be 1 to ",
                                          kMaxPieceBytes, " bytes of well-formed UTF-8"));
  }
  if (!std::isfinite(piece->score)) {
    return absl::InvalidArgumentError(
        Cat("tokenizer.model: the score of ", where, " is not a finite number"));
  }
  if (type < 1 || type > 6) {
    return absl::InvalidArgumentError(
        Cat("tokenizer.model: the type of ", where, " is ", type, ", allowed are 1 to 6"));
  }
  piece->type = static_cast<SentencePieceModel::PieceType>(type);
  return absl::OkStatus();
}

absl::Status ParseTrainer(std::string_view bytes, SentencePieceModel* model) {
  WireReader reader(bytes);
  while (!reader.AtEnd()) {
    WireField field;
    if (!reader.Next(&field)) return Malformed("trainer_spec");
    if (field.wire_type != 0) continue;
    switch (field.number) {
      case 3:
        if (field.value < 1 || field.value > 4) {
          return absl::InvalidArgumentError(Cat("tokenizer.model: trainer_spec.model_type is ",
                                                field.value, ", allowed are 1 to 4"));
        }
        model->model_type = static_cast<SentencePieceModel::ModelType>(field.value);
        break;
      case 24:
        model->whitespace_as_suffix = field.value != 0;
        break;
      case 35:
        model->byte_fallback = field.value != 0;
        break;
      case 40:
        model->unk_id = static_cast<int32_t>(field.value);
        break;
      case 41:
        model->bos_id = static_cast<int32_t>(field.value);
        break;
      case 42:
        model->eos_id = static_cast<int32_t>(field.value);
        break;
      default:
        break;
    }
  }
  return absl::OkStatus();
}

absl::Status ParseNormalizer(std::string_view bytes, SentencePieceModel* model) {
  WireReader reader(bytes);
  while (!reader.AtEnd()) {
    WireField field;
    if (!reader.Next(&field)) return Malformed("normalizer_spec");
    if (field.number == 2 && field.wire_type == 2) {
      model->charsmap = std::string(field.bytes);
    } else if (field.number == 3 && field.wire_type == 0) {
      model->add_dummy_prefix = field.value != 0;
    } else if (field.number == 4 && field.wire_type == 0) {
      model->remove_extra_whitespaces = field.value != 0;
    } else if (field.number == 5 && field.wire_type == 0) {
      model->escape_whitespaces = field.value != 0;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SentencePieceModel> ParseSentencePieceModel(std::string_view bytes) {
  SentencePieceModel model;
  WireReader reader(bytes);
  while (!reader.AtEnd()) {
    WireField field;
    if (!reader.Next(&field)) return Malformed("the message");
    if (field.wire_type != 2) continue;
    absl::Status status;
    if (field.number == 1) {
      if (model.pieces.size() == kMaxPieces) {
        return absl::InvalidArgumentError(
            Cat("tokenizer.model: more than ", kMaxPieces, " pieces"));
      }
      SentencePieceModel::Piece piece;
      status = ParsePiece(field.bytes, model.pieces.size(), &piece);
      model.pieces.push_back(std::move(piece));
    } else if (field.number == 2) {
      status = ParseTrainer(field.bytes, &model);
    } else if (field.number == 3) {
      status = ParseNormalizer(field.bytes, &model);
    }
    if (!status.ok()) return status;
  }
  if (model.pieces.empty()) {
    return absl::InvalidArgumentError("tokenizer.model: no pieces");
  }
  return model;
}

}  // namespace nibble
