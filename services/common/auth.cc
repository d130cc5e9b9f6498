// SPDX-License-Identifier: Apache-2.0
#include "services/common/auth.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <fstream>
#include <iterator>
#include <sstream>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "engine/base/cat.h"
#include "services/common/log.h"
#include "services/common/text.h"

namespace nibble {
namespace {

constexpr size_t kMaxTokensFileBytes = 1 << 20;
constexpr size_t kMaxTokenBytes = 4096;

struct NamedRole {
  std::string_view name;
  Role role;
};
constexpr NamedRole kRoles[] = {
    {"generate", Role::kGenerate}, {"quantize", Role::kQuantize}, {"admin", Role::kAdmin}};

absl::StatusOr<uint8_t> ParseRoles(std::string_view text) {
  uint8_t roles = 0;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    const std::string_view word = text.substr(begin, comma - begin);
    begin = comma + 1;
    const auto* found = std::find_if(std::begin(kRoles), std::end(kRoles),
                                     [&](const NamedRole& row) { return row.name == word; });
    if (found == std::end(kRoles)) {
      return absl::InvalidArgumentError(
          Cat("role \"", word, "\" is unknown; roles are generate, quantize, admin"));
    }
    roles |= static_cast<uint8_t>(found->role);
  }
  return roles;
}

// Identifies a file's contents without reading them; "" if it cannot be examined.
std::string Stamp(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return "";
  return Cat(info.st_ino, "/", info.st_size, "/", info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec,
             "/", info.st_ctim.tv_sec, ".", info.st_ctim.tv_nsec);
}

}  // namespace

std::string_view RoleName(Role role) {
  for (const NamedRole& row : kRoles) {
    if (row.role == role) return row.name;
  }
  return "";
}

absl::StatusOr<std::vector<TokenEntry>> ParseTokens(std::string_view text) {
  std::vector<TokenEntry> entries;
  int number = 0;
  std::istringstream lines{std::string(text)};
  for (std::string line; std::getline(lines, line);) {
    ++number;
    std::istringstream line_words(line);
    const std::vector<std::string> words{std::istream_iterator<std::string>(line_words), {}};
    if (words.empty() || words[0].starts_with('#')) continue;
    if (words.size() != 4) {
      return absl::InvalidArgumentError(Cat("line ", number, " has ", words.size(),
                                            " words; it must have 4: sha256, name, tenant, roles"));
    }
    const bool hex = std::all_of(words[0].begin(), words[0].end(),
                                 [](unsigned char c) { return std::isxdigit(c) != 0; });
    if (words[0].size() != 64 || !hex) {
      return absl::InvalidArgumentError(
          Cat("line ", number, ": the first word must be a sha256 of 64 hexadecimal digits"));
    }
    absl::StatusOr<uint8_t> roles = ParseRoles(words[3]);
    if (!roles.ok()) {
      return absl::InvalidArgumentError(Cat("line ", number, ": ", roles.status().message()));
    }
    TokenEntry entry;
    const std::string bytes = absl::HexStringToBytes(words[0]);
    std::copy(bytes.begin(), bytes.end(), entry.sha256.begin());
    entry.caller = Caller{words[1], words[2], *roles};
    entries.push_back(std::move(entry));
  }
  return entries;
}

Authorizer::Authorizer(std::string tokens_file) : tokens_file_(std::move(tokens_file)) {}

absl::StatusOr<std::unique_ptr<Authorizer>> Authorizer::Make(const std::string& tokens_file) {
  std::unique_ptr<Authorizer> made(new Authorizer(tokens_file));
  if (tokens_file.empty()) return made;
  if (absl::Status status = made->Load(); !status.ok()) return status;
  made->refresher_ = std::thread([self = made.get()] {
    std::unique_lock lock(self->mutex_);
    while (!self->stop_changed_.wait_for(lock, std::chrono::seconds(1),
                                         [self] { return self->stop_; })) {
      lock.unlock();
      self->Refresh();
      lock.lock();
    }
  });
  return made;
}

Authorizer::~Authorizer() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stop_changed_.notify_all();
  if (refresher_.joinable()) refresher_.join();
}

absl::Status Authorizer::Load() {
  const std::string stamp = Stamp(tokens_file_);
  std::ifstream file(tokens_file_, std::ios::binary);
  std::string text(kMaxTokensFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad()) {
    return absl::NotFoundError(Cat("tokens file ", tokens_file_, " cannot be read"));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxTokensFileBytes) {
    return absl::InvalidArgumentError(Cat("tokens file ", tokens_file_, " is larger than 1 MiB"));
  }
  absl::StatusOr<std::vector<TokenEntry>> entries = ParseTokens(text);
  if (!entries.ok()) {
    return absl::InvalidArgumentError(
        Cat("tokens file ", tokens_file_, ": ", entries.status().message()));
  }
  auto shared = std::make_shared<const std::vector<TokenEntry>>(*std::move(entries));
  std::lock_guard lock(mutex_);
  entries_ = std::move(shared);
  stamp_ = stamp;
  return absl::OkStatus();
}

void Authorizer::Refresh() {
  const std::string stamp = Stamp(tokens_file_);
  {
    std::lock_guard lock(mutex_);
    if (stamp == stamp_) return;
    stamp_ = stamp;  // a wrong file is complained of once, not every second
  }
  if (absl::Status status = Load(); !status.ok()) {
    LogError("tokens_not_reloaded", {{"error", std::string(status.message())}});
    return;
  }
  LogInfo("tokens_reloaded", {{"file", tokens_file_}});
}

absl::StatusOr<Caller> Authorizer::Check(std::string_view authorization, Role needed) const {
  if (tokens_file_.empty()) {
    return Caller{"local", "local", static_cast<uint8_t>(Role::kAdmin)};
  }
  std::shared_ptr<const std::vector<TokenEntry>> entries;
  {
    std::lock_guard lock(mutex_);
    entries = entries_;
  }
  constexpr std::string_view kScheme = "Bearer ";
  if (!absl::StartsWithIgnoreCase(AbslView(authorization), AbslView(kScheme)) ||
      authorization.size() > kMaxTokenBytes) {
    return absl::UnauthenticatedError(
        "no bearer token; send the metadata \"authorization: Bearer <token>\"");
  }
  const std::string_view token = authorization.substr(kScheme.size());
  std::array<uint8_t, 32> hash;
  SHA256(reinterpret_cast<const uint8_t*>(token.data()), token.size(), hash.data());
  const Caller* caller = nullptr;
  for (const TokenEntry& entry : *entries) {
    if (CRYPTO_memcmp(entry.sha256.data(), hash.data(), hash.size()) == 0) caller = &entry.caller;
  }
  if (caller == nullptr) return absl::UnauthenticatedError("the bearer token is not known");
  if (!caller->Has(needed)) {
    return absl::PermissionDeniedError(Cat(caller->name, " lacks the role ", RoleName(needed)));
  }
  return *caller;
}

}  // namespace nibble
