// SPDX-License-Identifier: Apache-2.0
//
// The first byte chooses the format (JSON, SentencePiece, GGUF-like), the second how much of the
// rest is text to encode with what was loaded.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tokenizer/tokenizer.h"

namespace {

// Tokens separated by NUL; a token's first byte gives its type and score.
nibble::GgufVocab VocabFrom(std::string_view bytes, bool scores) {
  nibble::GgufVocab vocab;
  vocab.model = scores ? "llama" : "gpt2";
  vocab.pre = "qwen2";
  while (!bytes.empty()) {
    const size_t end = std::min(bytes.find('\0'), bytes.size());
    const std::string_view entry = bytes.substr(0, end);
    bytes.remove_prefix(std::min(end + 1, bytes.size()));
    if (entry.empty()) continue;
    const auto head = static_cast<unsigned char>(entry[0]);
    if (!scores && head >= 0xF0) {
      vocab.merges.emplace_back(entry.substr(1));
      continue;
    }
    vocab.tokens.emplace_back(entry.substr(1));
    vocab.token_type.push_back(head % 7);
    if (scores) vocab.scores.push_back(-static_cast<float>(head / 7));
  }
  return vocab;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 2, size - 2);
  const size_t text_size = rest.size() * data[1] / 512;
  const std::string_view text = rest.substr(0, text_size);
  const std::string_view file = rest.substr(text_size);
  const auto tokenizer = data[0] % 4 == 0 ? nibble::Tokenizer::FromTokenizerJson(file)
                         : data[0] % 4 == 1
                             ? nibble::Tokenizer::FromSentencePiece(file)
                             : nibble::Tokenizer::FromGguf(VocabFrom(file, data[0] % 4 == 2));
  if (!tokenizer.ok()) return 0;
  nibble::EncodeOptions options;
  options.parse_special = (data[0] & 4) != 0;
  const std::vector<int32_t> ids = (*tokenizer)->Encode(text, options);
  nibble::IncrementalDecoder::Options decoding;
  decoding.skip_special = (data[0] & 8) != 0;
  decoding.at_start = true;
  nibble::IncrementalDecoder decoder(*tokenizer, decoding);
  std::string pieces;
  for (const int32_t id : ids) {
    if (id < 0 || id >= (*tokenizer)->vocab_size()) std::abort();
    pieces += decoder.Push(id);
  }
  pieces += decoder.Flush();
  if (pieces != (*tokenizer)->Decode(ids, decoding.skip_special)) std::abort();
  return 0;
}
