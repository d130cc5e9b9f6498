// SPDX-License-Identifier: Apache-2.0
// Who calls, and what he may do.
//
// The tokens file holds one token a line, as its sha256 (never itself), with a name for the logs,
// the tenant that owns what the caller makes, and roles:
//
//   # sha256 of the token                                             name   tenant  roles
//   9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  alice  lab generate,quantize
//
//   printf %s "$TOKEN" | sha256sum
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

// What an RPC needs.
enum class Role : uint8_t {
  kGenerate = 1,  // generate, score, tokenize, list served models
  kQuantize = 2,  // uploads, jobs, artifacts of the own tenant
  kAdmin = 4,     // load, unload, delete, sources named by path; implies the others
};
std::string_view RoleName(Role role);

struct Caller {
  std::string name;
  std::string tenant;
  uint8_t roles = 0;  // Role values, or-ed

  bool Has(Role role) const {
    return (roles & (static_cast<uint8_t>(role) | static_cast<uint8_t>(Role::kAdmin))) != 0;
  }
};

struct TokenEntry {
  std::array<uint8_t, 32> sha256;
  Caller caller;
};

// InvalidArgument names the line and what is wrong with it.
absl::StatusOr<std::vector<TokenEntry>> ParseTokens(std::string_view text);

// Thread-safe.
class Authorizer {
 public:
  // Without a tokens file everybody is "local" of tenant "local" with every role.
  static absl::StatusOr<std::unique_ptr<Authorizer>> Make(const std::string& tokens_file);
  ~Authorizer();

  // `authorization`: the metadata of that name ("Bearer <token>"), "" if there was none.
  // Unauthenticated if the token is unknown, PermissionDenied if its roles lack `needed`. Compares
  // in constant time with every known hash. Does no file work.
  absl::StatusOr<Caller> Check(std::string_view authorization, Role needed) const;

  // Reads the file again if it changed; called every second by a thread of its own. A file that is
  // wrong changes nothing and is logged.
  void Refresh();

 private:
  explicit Authorizer(std::string tokens_file);
  absl::Status Load();

  const std::string tokens_file_;
  mutable std::mutex mutex_;  // guards entries_
  std::shared_ptr<const std::vector<TokenEntry>> entries_;
  std::string stamp_;  // size, inode and change time of what was read; used by Refresh only
  std::condition_variable stop_changed_;
  bool stop_ = false;
  std::thread refresher_;
};

}  // namespace nibble
