// SPDX-License-Identifier: Apache-2.0
// The few file operations whose order decides whether anything is lost. Everything durable
// (checkpoints, artifacts, uploads) is written through this interface, so that tests can fail or
// forget any one of them (tests/support/fault_fs.h). Reading is done by mapping.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

class WritableFile {
 public:
  virtual ~WritableFile() = default;                        // closes without syncing
  virtual absl::Status Append(std::string_view bytes) = 0;  // IsDiskFull: no space is left
  virtual absl::Status Sync() = 0;                          // fsync: the bytes survive a power cut
  virtual absl::Status Close() = 0;
};

// Thread-safe. Statuses name the path and errno's text: NotFound, AlreadyExists, ResourceExhausted
// (a full disk for which IsDiskFull() of posix_status.h holds, or a shortage of memory or
// descriptors), PermissionDenied, otherwise Internal.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  // Creates `path`, which must not exist.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) = 0;
  // Opens an existing file for writing at its end, after cutting it to `size` bytes.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> Continue(const std::string& path,
                                                                 int64_t size) = 0;
  virtual absl::Status CreateDirectory(
      const std::string& path) = 0;  // AlreadyExists if it is there
  virtual absl::Status SyncDirectory(const std::string& path) = 0;
  virtual absl::Status RenameNoReplace(const std::string& from,
                                       const std::string& to) = 0;  // AlreadyExists
  virtual absl::Status Remove(const std::string& path) = 0;  // one file or an empty directory
  virtual absl::Status RemoveTree(
      const std::string& path) = 0;  // ok if absent; never follows links
  virtual absl::StatusOr<std::vector<std::string>> List(
      const std::string& path) = 0;  // names, sorted
  virtual absl::StatusOr<int64_t> Size(const std::string& path) = 0;
  virtual absl::StatusOr<int64_t> FreeBytes(const std::string& path) = 0;
};

// The real one.
FileSystem& PosixFileSystem();

}  // namespace nibble
