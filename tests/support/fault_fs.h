// SPDX-License-Identifier: Apache-2.0
// A file system for tests that fails where it is told and forgets what was never synced.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/artifact/file_system.h"

namespace nibble {

class FaultFile;

// Works on real files beneath `root`, and remembers which changes a power cut would undo:
// - bytes appended to a file after its last Sync,
// - creations, renames and removals in a directory after its last SyncDirectory,
// A file cut by Continue stays cut.
// Changes that outlive a crash by luck on real disks do not here: a synced file whose directory was
// not synced is gone. Operations that change something are counted from 0: Create, Continue,
// Append, Sync, Close, CreateDirectory, SyncDirectory, RenameNoReplace, Remove, RemoveTree. Reading
// operations are neither counted nor failed. Thread-safe.
class FaultFileSystem final : public FileSystem {
 public:
  // `root` is an existing directory; root + ".removed" is used besides.
  explicit FaultFileSystem(std::string root);
  ~FaultFileSystem() override;

  // Operations counted so far.
  int64_t operations() const;
  // "append", "sync", ... and the path of each operation so far.
  std::vector<std::string> log() const;

  // Operations first..first + count - 1 (absolute numbers, as operations() counts) fail with
  // `status` and do nothing; a failing Append first writes half of its bytes.
  void Fail(int64_t first, absl::Status status,
            int64_t count = std::numeric_limits<int64_t>::max());
  void StopFailing();

  // Power cut: undoes everything that was not synced. Files that are open can no longer be written.
  void Crash();

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<WritableFile>> Continue(const std::string& path,
                                                         int64_t size) override;
  absl::Status CreateDirectory(const std::string& path) override;
  absl::Status SyncDirectory(const std::string& path) override;
  absl::Status RenameNoReplace(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& path) override;
  absl::Status RemoveTree(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override;
  absl::StatusOr<int64_t> Size(const std::string& path) override;
  absl::StatusOr<int64_t> FreeBytes(const std::string& path) override;

 private:
  friend class FaultFile;

  // A change of a directory that is not durable yet.
  struct Pending {
    enum class Kind { kCreate, kRename, kRemove } kind;
    std::string path;   // what was created; where the rename went; what was removed
    std::string other;  // where the rename came from; where the removed thing is kept
  };

  absl::Status Count(std::string_view what, const std::string& path);  // needs mutex_
  absl::Status RemoveLocked(std::string_view what, const std::string& path);
  void MovePrefix(const std::string& from, const std::string& to, size_t pending_count);

  const std::string root_;
  const std::string removed_;
  mutable std::mutex mutex_;
  std::vector<std::string> log_;
  int64_t fail_first_ = std::numeric_limits<int64_t>::max();
  int64_t fail_count_ = 0;
  absl::Status failure_;
  int64_t crashes_ = 0;
  std::vector<FaultFile*> open_;
  int64_t next_removed_ = 0;
  std::vector<Pending> pending_;                 // oldest first
  std::map<std::string, int64_t> synced_bytes_;  // of every file written through here
};

}  // namespace nibble
