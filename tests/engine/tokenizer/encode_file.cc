// SPDX-License-Identifier: Apache-2.0
//
// encode_file TOKENIZER FILE: the file's token ids, one a line, with nothing added and special
// tokens left as text; on standard error the time. TOKENIZER is a tokenizer.json, a
// tokenizer.model, or a directory with vocab.json and merges.txt of the Qwen 2 family. Used by
// compare_with_package.py.

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "engine/tokenizer/tokenizer.h"

namespace {

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: encode_file TOKENIZER FILE\n");
    return 2;
  }
  const std::filesystem::path path(argv[1]);
  const auto load_start = std::chrono::steady_clock::now();
  auto tokenizer = path.extension() == ".json"
                       ? nibble::Tokenizer::FromTokenizerJson(ReadFile(path))
                   : path.extension() == ".model"
                       ? nibble::Tokenizer::FromSentencePiece(ReadFile(path))
                       : nibble::Tokenizer::FromVocabAndMerges(ReadFile(path / "vocab.json"),
                                                               ReadFile(path / "merges.txt"),
                                                               nibble::WordSplit::kQwen2);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
    return 1;
  }
  const double load_seconds = SecondsSince(load_start);
  const std::string text = ReadFile(argv[2]);
  nibble::EncodeOptions options;
  options.add_bos = false;
  const auto encode_start = std::chrono::steady_clock::now();
  const std::vector<int32_t> ids = (*tokenizer)->Encode(text, options);
  const double encode_seconds = SecondsSince(encode_start);
  for (const int32_t id : ids) std::printf("%d\n", id);
  std::fprintf(stderr, "load %.0f ms, encode %.1f MB/s\n", load_seconds * 1e3,
               static_cast<double>(text.size()) / encode_seconds / 1e6);
  return 0;
}
