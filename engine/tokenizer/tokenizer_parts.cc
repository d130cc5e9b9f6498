// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/tokenizer_parts.h"

#include <array>

#include "engine/base/cat.h"
#include "engine/tokenizer/text.h"
#include "engine/tokenizer/utf8.h"

namespace nibble {
namespace {

constexpr size_t kMaxTokenBytes = 4096;

// By code point below 0x144: the byte it stands for, or -1.
std::array<int16_t, 0x144> MakeByteAlphabet() {
  std::array<int16_t, 0x144> bytes;
  bytes.fill(-1);
  size_t next = 0x100;
  for (int16_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
                           (byte >= 0xAE && byte <= 0xFF);
    bytes[printable ? static_cast<size_t>(byte) : next++] = byte;
  }
  return bytes;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

absl::Status AddToken(int32_t id, std::string_view text, TokenizerParts* parts) {
  if (id < 0 || id > kMaxTokenId) {
    return absl::InvalidArgumentError(
        Cat("token '", text.substr(0, 64), "': id ", id, " is outside 0..", kMaxTokenId));
  }
  if (text.empty() || text.size() > kMaxTokenBytes) {
    return absl::InvalidArgumentError(
        Cat("token ", id, ": text of ", text.size(), " bytes, allowed are 1 to ", kMaxTokenBytes));
  }
  const auto index = static_cast<size_t>(id);
  if (index >= parts->texts.size()) parts->texts.resize(index + 1);
  if (parts->texts[index] == text) return absl::OkStatus();
  if (!parts->texts[index].empty()) {
    return absl::InvalidArgumentError(Cat("token id ", id, " is both '",
                                          parts->texts[index].substr(0, 64), "' and '",
                                          text.substr(0, 64), "'"));
  }
  parts->texts[index] = std::string(text);
  parts->ids.try_emplace(text, id);
  return absl::OkStatus();
}

void FinishParts(TokenizerParts* parts) {
  parts->bytes.resize(parts->texts.size());
  parts->special.assign(parts->texts.size(), false);
  for (const AddedToken& token : parts->added_list) {
    const auto index = static_cast<size_t>(token.id);
    if (parts->bytes[index].empty()) parts->bytes[index] = parts->texts[index];
    parts->special[index] = token.special;
  }
  parts->added = AddedTokens(parts->added_list, parts->normalizer);

  if (parts->chat_template_source.empty()) {
    parts->chat_template_status = absl::NotFoundError("the model has no chat template");
    return;
  }
  absl::StatusOr<ChatTemplate> parsed = ChatTemplate::Parse(parts->chat_template_source);
  parts->chat_template_status = parsed.status();
  if (parsed.ok()) parts->chat_template = *std::move(parsed);
}

std::optional<std::string> ByteAlphabetToBytes(std::string_view text) {
  static const std::array<int16_t, 0x144> alphabet = MakeByteAlphabet();
  std::string bytes;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text, pos);
    if (!c.valid || c.code >= alphabet.size() || alphabet[c.code] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(alphabet[c.code]));
    pos += c.size;
  }
  return bytes;
}

std::optional<uint8_t> ParseByteToken(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return std::nullopt;
  const int high = HexDigit(text[3]);
  const int low = HexDigit(text[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<uint8_t>(high * 16 + low);
}

std::string MarksToSpaces(std::string_view text) { return ReplaceAll(text, "\xE2\x96\x81", " "); }

absl::StatusOr<std::pair<std::string, std::string>> SplitMergeLine(std::string_view line) {
  const size_t space = line.find(' ');
  if (space == std::string_view::npos || space == 0 || space + 1 == line.size() ||
      line.find(' ', space + 1) != std::string_view::npos) {
    return absl::InvalidArgumentError(
        Cat("merge '", line.substr(0, 64), "' is not two tokens with a space between"));
  }
  return std::make_pair(std::string(line.substr(0, space)), std::string(line.substr(space + 1)));
}

absl::StatusOr<BpeModel> BuildMergeListModel(
    const TextMap<int32_t>& vocab, const std::vector<std::pair<std::string, std::string>>& merges,
    const MergeListOptions& options) {
  BpeModel::Spec spec;
  spec.symbols_are_bytes = options.byte_level;
  spec.ignore_merges = options.ignore_merges;
  spec.fuse_unk = options.fuse_unk;
  if (options.unk_token.has_value()) {
    const auto it = vocab.find(*options.unk_token);
    if (it == vocab.end()) {
      return absl::InvalidArgumentError(
          Cat("unk_token '", *options.unk_token, "' is not in the vocabulary"));
    }
    spec.unk_id = it->second;
  }

  spec.pieces.reserve(vocab.size());
  for (const auto& [text, id] : vocab) {
    if (options.byte_level) {
      std::optional<std::string> bytes = ByteAlphabetToBytes(text);
      if (bytes.has_value()) spec.pieces.emplace(*std::move(bytes), id);
    } else {
      spec.pieces.emplace(text, id);
    }
    if (options.byte_fallback) {
      if (const std::optional<uint8_t> byte = ParseByteToken(text)) spec.byte_ids[*byte] = id;
    }
  }

  spec.merges.reserve(merges.size());
  std::string whole;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    whole.assign(left);
    whole.append(right);
    const auto left_it = vocab.find(left);
    const auto right_it = vocab.find(right);
    const auto whole_it = vocab.find(whole);
    if (left_it == vocab.end() || right_it == vocab.end() || whole_it == vocab.end()) {
      const std::string& missing = left_it == vocab.end()    ? left
                                   : right_it == vocab.end() ? right
                                                             : whole;
      return absl::InvalidArgumentError(
          Cat("merge ", rank, ": token '", missing.substr(0, 64), "' is not in the vocabulary"));
    }
    spec.merges.push_back(
        {left_it->second, right_it->second, static_cast<uint32_t>(rank), whole_it->second});
  }
  return BpeModel(std::move(spec));
}

}  // namespace nibble
