// SPDX-License-Identifier: Apache-2.0
// Writes one safetensors file as its data comes; the same tensors always give the same bytes.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/artifact/file_system.h"
#include "engine/artifact/safetensors.h"
#include "engine/artifact/sha256.h"

namespace nibble {

// A file that was written and synced.
struct WrittenFile {
  std::string name;  // last component of its path
  int64_t bytes = 0;
  std::string sha256;  // lower-case hex
};

// Not thread-safe. If anything fails, or it is destroyed before Finish, the file is incomplete and
// the caller removes it.
class SafetensorsWriter {
 public:
  // Creates `path`, which must not exist, and writes the header. name, dtype and shape of `tensors`
  // count; begin and end are set here.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(
      FileSystem& fs, std::string path, std::vector<SafetensorsEntry> tensors,
      const std::map<std::string, std::string>& metadata = {});

  // The next bytes of tensor `name`. Tensors come in the order of Create, each in one or more
  // pieces; InvalidArgument for another name or too many bytes.
  absl::Status Append(std::string_view name, std::string_view bytes);

  // Whether every tensor has all its bytes.
  bool complete() const { return next_ == tensors_.size(); }

  // FailedPrecondition if bytes are missing. Syncs the file; syncing its directory is the caller's.
  absl::StatusOr<WrittenFile> Finish();

 private:
  SafetensorsWriter(std::string path, std::vector<SafetensorsEntry> tensors,
                    std::unique_ptr<WritableFile> file)
      : path_(std::move(path)), tensors_(std::move(tensors)), file_(std::move(file)) {}
  absl::Status Write(std::string_view bytes);
  void SkipFull();

  std::string path_;
  std::vector<SafetensorsEntry> tensors_;
  std::unique_ptr<WritableFile> file_;
  Sha256 hash_;
  int64_t file_bytes_ = 0;
  size_t next_ = 0;      // tensor that is being written
  int64_t written_ = 0;  // bytes of it
};

// Writes, syncs and closes a small file; syncing its directory is the caller's.
absl::StatusOr<WrittenFile> WriteWholeFile(FileSystem& fs, const std::string& path,
                                           std::string_view bytes);

}  // namespace nibble
