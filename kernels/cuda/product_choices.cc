// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/product_choices.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace nibble {
namespace {

constexpr std::string_view kFirstLine = "nibble's choices of cuBLASLt algorithms, 1";
constexpr std::string_view kColumns =
    "# bucket n k lda ldb ldd in out, then the algorithm: 8 words, hexadecimal";
constexpr uintmax_t kMostBytes = uintmax_t{8} << 20;

// FNV-1a (Fowler, Noll, Vo), 64 bits: finds what was cut off or mistyped, nothing cleverer.
uint64_t Checksum(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

// Of the directory, held while the file in it is read, added to and renamed. Others hold it for
// milliseconds; whoever waits longer goes on without, and the last to rename stays.
class DirectoryLock {
 public:
  explicit DirectoryLock(const std::string& path)
      : directory_(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    for (int i = 0; i < 100 && directory_ >= 0 && ::flock(directory_, LOCK_EX | LOCK_NB) != 0;
         ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  ~DirectoryLock() {
    if (directory_ >= 0) ::close(directory_);
  }
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  int directory_;
};

std::string Hex(uint64_t value) { return absl::StrCat(absl::Hex(value, absl::kZeroPad16)); }

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

template <typename T>
bool ParseWord(std::string_view word, int base, T* value) {
  const char* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, *value, base);
  return error == std::errc() && stop == end;
}

bool ParseChoice(std::string_view line, ProductKey* key, ProductAlgorithm* algorithm) {
  const std::vector<std::string_view> words = Split(line, ' ');
  int64_t* const fields[] = {&key->bucket, &key->n,   &key->k,  &key->lda,
                             &key->ldb,    &key->ldd, &key->in, &key->out};
  constexpr size_t kFields = std::size(fields);
  if (words.size() != kFields + algorithm->size()) return false;
  for (size_t i = 0; i < kFields; ++i) {
    if (!ParseWord(words[i], 10, fields[i]) || *fields[i] < 0) return false;
  }
  for (size_t i = 0; i < algorithm->size(); ++i) {
    if (!ParseWord(words[kFields + i], 16, &(*algorithm)[i])) return false;
  }
  return true;
}

}  // namespace

int64_t TokenBucket(int64_t tokens) {
  NIBBLE_CHECK(tokens >= 1);
  if (tokens <= 16) return tokens;
  const auto power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(tokens)));
  return tokens <= power / 4 * 3 ? power / 4 * 3 : power;
}

int ProductsPerSample(int64_t m, int64_t n, int64_t k, int64_t bytes_of_element) {
  // A GPU of the size of an H100, roughly.
  constexpr double kBytesPerSecond = 2e12, kOperationsPerSecond = 5e14, kSample = 1e-4;
  const double bytes =
      static_cast<double>(bytes_of_element) * (static_cast<double>(m + n) * static_cast<double>(k) +
                                               static_cast<double>(m) * static_cast<double>(n));
  const double operations =
      2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const double seconds = std::max(bytes / kBytesPerSecond, operations / kOperationsPerSecond);
  return static_cast<int>(std::clamp(kSample / std::max(seconds, 1e-9), 1.0, 16.0));
}

int FastestCandidate(std::span<const double> seconds) {
  int best = -1;
  for (size_t i = 0; i < seconds.size(); ++i) {
    if (std::isnan(seconds[i])) continue;
    if (best < 0 || seconds[i] < 0.98 * seconds[static_cast<size_t>(best)]) {
      best = static_cast<int>(i);
    }
  }
  return best;
}

std::string FormatProducts(std::string_view machine, const ProductTable& table) {
  std::string text = absl::StrCat(std::string(kFirstLine), "\n", std::string(machine), "\n",
                                  std::string(kColumns), "\n");
  for (const auto& [key, algorithm] : table) {
    absl::StrAppend(&text, key.bucket, " ", key.n, " ", key.k, " ", key.lda, " ", key.ldb, " ",
                    key.ldd, " ", key.in, " ", key.out);
    for (const uint64_t word : algorithm) absl::StrAppend(&text, " ", Hex(word));
    text += '\n';
  }
  return absl::StrCat(text, "end ", table.size(), " ", Hex(Checksum(text)), "\n");
}

absl::StatusOr<ProductTable> ParseProducts(std::string_view machine, std::string_view text) {
  const auto wrong = [](auto... what) { return absl::InvalidArgumentError(absl::StrCat(what...)); };
  if (text.empty() || text.back() != '\n') return wrong("its last line is cut off");
  const std::vector<std::string_view> lines = Split(text.substr(0, text.size() - 1), '\n');
  if (lines.size() < 4 || lines[0] != kFirstLine || lines[2] != kColumns) {
    return wrong("it does not begin with \"", std::string(kFirstLine), "\"");
  }
  const size_t choices = lines.size() - 4;
  const std::string_view all = text.substr(0, text.size() - 1 - lines.back().size());
  if (lines.back() != absl::StrCat("end ", choices, " ", Hex(Checksum(all)))) {
    return wrong("its last line is not the number of choices and their checksum");
  }
  if (lines[1] != machine) {
    return absl::FailedPreconditionError(absl::StrCat("it is of \"", std::string(lines[1]), "\""));
  }
  ProductTable table;
  for (size_t i = 0; i < choices; ++i) {
    ProductKey key;
    ProductAlgorithm algorithm;
    if (!ParseChoice(lines[3 + i], &key, &algorithm)) return wrong("line ", i + 4, " is no choice");
    if (!table.emplace(key, algorithm).second) return wrong("line ", i + 4, " is there twice");
  }
  return table;
}

std::string UserCacheDirectory() {
  const char* xdg = std::getenv("XDG_CACHE_HOME");
  if (xdg != nullptr && xdg[0] == '/') return absl::StrCat(xdg, "/nibble");
  const char* home = std::getenv("HOME");
  return home != nullptr && home[0] == '/' ? absl::StrCat(home, "/.cache/nibble") : "";
}

ProductChoices::ProductChoices(std::string directory, std::string machine)
    : directory_(std::move(directory)), machine_(std::move(machine)) {
  if (directory_.empty()) return;
  path_ = absl::StrCat(directory_, "/cublaslt-", Hex(Checksum(machine_)), ".txt");
  absl::StatusOr<ProductTable> table = Read();
  if (table.ok()) {
    table_ = *std::move(table);
  } else if (table.status().code() != absl::StatusCode::kNotFound) {
    note_ = absl::StrCat(path_, " is ignored: ", std::string(table.status().message()));
  }
}

absl::StatusOr<ProductTable> ProductChoices::Read() const {
  std::error_code error;
  const uintmax_t bytes = std::filesystem::file_size(path_, error);
  if (error) return absl::NotFoundError("there is none");
  if (bytes > kMostBytes) return absl::InvalidArgumentError("it is larger than 8 MiB");
  std::ostringstream text;
  text << std::ifstream(path_, std::ios::binary).rdbuf();
  return ParseProducts(machine_, text.str());
}

const ProductAlgorithm* ProductChoices::Find(const ProductKey& key) const {
  const auto found = table_.find(key);
  return found != table_.end() ? &found->second : nullptr;
}

absl::Status ProductChoices::Add(const ProductKey& key, const ProductAlgorithm& algorithm) {
  table_[key] = algorithm;
  if (path_.empty()) return absl::OkStatus();
  std::error_code error;
  std::filesystem::create_directories(directory_, error);
  const DirectoryLock lock(directory_);
  if (const absl::StatusOr<ProductTable> kept = Read(); kept.ok()) {
    for (const auto& [known, choice] : *kept) table_[known] = choice;
  }
  const std::string draft = absl::StrCat(path_, ".", getpid());
  std::ofstream file(draft, std::ios::binary | std::ios::trunc);
  file << FormatProducts(machine_, table_);
  file.close();
  if (file.good()) {
    std::filesystem::rename(draft, path_, error);
    if (!error) return absl::OkStatus();
  }
  std::filesystem::remove(draft, error);
  return absl::UnavailableError(absl::StrCat(path_, " cannot be written"));
}

}  // namespace nibble
