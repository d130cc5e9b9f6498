// SPDX-License-Identifier: Apache-2.0
// SHA-256 (FIPS 180-4), as lower-case hex.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace nibble {

// Of bytes that come piece by piece. Not thread-safe.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  void Update(std::string_view bytes);
  std::string FinishHex();  // 64 characters; nothing may follow it

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

std::string Sha256Hex(std::string_view bytes);

// Of a file, read in pieces of 1 MiB. `keep_going`, if given, is asked before each piece; its error
// ends the reading and is returned.
absl::StatusOr<std::string> Sha256OfFile(const std::string& path,
                                         const std::function<absl::Status()>& keep_going = nullptr);

}  // namespace nibble
