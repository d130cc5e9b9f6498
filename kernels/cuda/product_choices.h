// SPDX-License-Identifier: Apache-2.0
// Which algorithm of the library multiplies which shapes, and the file in which that outlives the
// process: timing is not repeatable, so what was chosen once is kept, and the same steps give the
// same bits in every later run. Host code alone; blas.cc times and asks.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

// ---- What is timed

// Tokens that share an algorithm: the most of them, for `tokens` of them (at least 1). Every number
// up to 16 is alone, then come powers of two and the middles between: 24, 32, 48, 64, 96, ...
int64_t TokenBucket(int64_t tokens);

// Products in one sample, so that a sample is some 100 us and the clock's steps do not decide.
int ProductsPerSample(int64_t m, int64_t n, int64_t k, int64_t bytes_of_element);

// The index of the candidate to take. Candidates come in the library's own order of preference; one
// replaces an earlier one only if it is 2 % faster, so that noise does not choose. Not a number:
// the candidate did not run. -1 if none ran.
int FastestCandidate(std::span<const double> seconds);

// ---- What was chosen

struct ProductKey {
  int64_t bucket = 0;  // TokenBucket
  int64_t n = 0, k = 0, lda = 0, ldb = 0, ldd = 0;
  int64_t in = 0, out = 0;  // DType
  friend auto operator<=>(const ProductKey&, const ProductKey&) = default;
};
// What cublasLtMatmulAlgo_t holds: it may be kept and restored within one version of the library.
using ProductAlgorithm = std::array<uint64_t, 8>;
using ProductTable = std::map<ProductKey, ProductAlgorithm>;

// The file: four lines of text and one per choice; the last line tells how many there are and the
// checksum of all before it. `machine` is one line: choices are of no use on another.
std::string FormatProducts(std::string_view machine, const ProductTable& table);
// InvalidArgument says what is wrong with the text; FailedPrecondition: it is of another machine.
absl::StatusOr<ProductTable> ParseProducts(std::string_view machine, std::string_view text);

// $XDG_CACHE_HOME/nibble, or $HOME/.cache/nibble, or "" where neither is set.
std::string UserCacheDirectory();

class ProductChoices {
 public:
  // `directory` "" keeps nothing. What is in the file and cannot be used is left out, and note()
  // says so.
  ProductChoices(std::string directory, std::string machine);

  const std::string& path() const { return path_; }  // "" if there is none
  const std::string& note() const { return note_; }  // one line, or ""
  const ProductAlgorithm* Find(const ProductKey& key) const;
  // Keeps it, and rewrites the file with what other processes have put there meanwhile: another
  // name first, then renamed, so that readers find a whole one. If one of them was first with this
  // key, its choice is kept instead. A directory that cannot be written is an error of this call
  // only.
  absl::Status Add(const ProductKey& key, const ProductAlgorithm& algorithm);

 private:
  absl::StatusOr<ProductTable> Read() const;  // NotFound: there is no file

  std::string directory_, machine_, path_, note_;
  ProductTable table_;
};

}  // namespace nibble
