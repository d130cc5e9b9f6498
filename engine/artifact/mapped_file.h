// SPDX-License-Identifier: Apache-2.0
// A file mapped read-only into memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace nibble {

// Immutable and thread-safe. Whoever maps a file must own it: a file that shrinks while it is
// mapped ends the process (SIGBUS) when the lost pages are read.
class MappedFile {
 public:
  // NotFound, PermissionDenied; InvalidArgument if it is not a regular file or is empty.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

  // Hints; `part` lies inside bytes(). WillNeed asks for read-ahead; Release drops the pages that
  // lie wholly inside `part` from this process (they are read again when touched).
  void WillNeed(std::string_view part) const;
  void Release(std::string_view part) const;

 private:
  MappedFile(std::string path, const char* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}

  std::string path_;
  const char* data_;
  size_t size_;
};

}  // namespace nibble
