// SPDX-License-Identifier: Apache-2.0
// Models and texts that a job names by a path beneath the model root.
//
// Every file is opened with openat2(RESOLVE_BENEATH): neither ".." nor a symbolic link leads out of
// the root, whatever happens to the directory meanwhile. What was opened is what is digested and
// what the pipeline reads (through /proc/self/fd): there is no moment between check and use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/artifact/file_system.h"
#include "services/quantization/resource_store.h"

namespace nibble {

// Over the lines "<sha256 of file>  <name>\n", sorted by name: what identifies an upload.
std::string FilesDigest(std::vector<FileRecord> files);

// InvalidArgument unless `path` is relative, 1..4096 bytes, and has neither "..", "." nor an empty
// component.
absl::Status CheckRelativePath(const std::string& field, const std::string& path);

// A file, or the files of one directory (not those of its sub-directories), held open.
class OpenSource {
 public:
  // NotFound, InvalidArgument (leads out of the root, special file, more than 1000 files),
  // FailedPrecondition if `root` is empty: no model root is configured.
  static absl::StatusOr<OpenSource> Open(const std::string& root, const std::string& path);
  ~OpenSource();
  OpenSource(OpenSource&& other) noexcept;
  OpenSource(const OpenSource&) = delete;
  OpenSource& operator=(const OpenSource&) = delete;
  OpenSource& operator=(OpenSource&&) = delete;

  bool is_directory() const { return is_directory_; }
  int64_t bytes() const;
  // Where a file can be read in this process while this object lives; "" if there is none of that
  // name.
  std::string ProcPath(const std::string& name) const;
  // Fills `directory`, which exists and is empty, with links to the open files; they work in this
  // process as long as this object lives. Returns the path of the source there.
  absl::StatusOr<std::string> LinkInto(const std::string& directory) const;

 private:
  struct File {
    std::string name;
    int fd;
    int64_t bytes;
  };
  OpenSource() = default;
  absl::Status Add(int directory_fd, const std::string& path, const std::string& name);

  bool is_directory_ = false;
  std::vector<File> files_;  // sorted by name
};

}  // namespace nibble
