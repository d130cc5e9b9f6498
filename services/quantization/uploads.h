// SPDX-License-Identifier: Apache-2.0
// Uploads: files that arrive in pieces, over connections that break, and count once they are synced
// and verified.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/artifact/file_system.h"
#include "services/quantization/clock.h"
#include "services/quantization/data_layout.h"
#include "services/quantization/resource_store.h"

namespace nibble {

struct UploadLimits {
  int32_t max_files = 1000;
  int64_t max_bytes = int64_t{64} << 30;    // of one upload
  UploadQuota quota;                        // of one caller
  absl::Duration expiry = absl::Hours(24);  // after the last synced byte
  int64_t sync_every = int64_t{16} << 20;   // bytes of a file between syncs
  int64_t keep_free = int64_t{256} << 20;   // bytes of the disk that uploads leave alone
  size_t max_chunk = size_t{1} << 20;       // bytes of one message
};

// 1..255 characters of a-z A-Z 0-9 . _ - + = @ , and space, not beginning with '.' or a space, so
// that no name leaves its directory. InvalidArgument names `field`.
absl::Status CheckFileName(const std::string& field, const std::string& name);

// 16 random characters of a-z and 2-7: 80 bits.
std::string RandomId();

class Uploads;

// Takes the bytes of one upload; there is at most one writer of an upload. Thread-compatible.
class UploadWriter {
 public:
  ~UploadWriter();  // Close(), its error unheard
  UploadWriter(const UploadWriter&) = delete;
  UploadWriter& operator=(const UploadWriter&) = delete;

  // OutOfRange, with the expected offset in the message, unless `offset` is the end of what was
  // written of that file. InvalidArgument for an unknown file, too large a chunk, or bytes beyond
  // the announced size. ResourceExhausted if the disk is full.
  absl::Status Write(const std::string& file, int64_t offset, std::string_view data);
  // Makes everything written so far durable and lets another writer in.
  absl::Status Close();

 private:
  friend class Uploads;
  UploadWriter(Uploads& uploads, UploadRecord record);
  absl::Status Open(const FileRecord& file);
  absl::Status Sync();  // of the open file

  Uploads& uploads_;
  UploadRecord record_;  // synced_bytes: kept up to date
  FileRecord* current_ = nullptr;
  std::unique_ptr<WritableFile> file_;
  int64_t written_ = 0;  // of the current file
  bool created_ = false;
  bool closed_ = false;
};

// Thread-safe, except that a writer belongs to one thread at a time. Outlives its writers.
class Uploads {
 public:
  // `on_bytes` hears of every chunk that was written.
  Uploads(ResourceStore& store, FileSystem& fs, DataLayout layout, UploadLimits limits,
          const Clock& clock, std::function<void(size_t)> on_bytes);

  // `record`: tenant, creator, kind, resource and files (names, sizes, digests).
  absl::StatusOr<UploadRecord> Create(UploadRecord record);
  // Aborted while there is another writer; FailedPrecondition if it is finished.
  absl::StatusOr<std::unique_ptr<UploadWriter>> OpenWriter(const std::string& id);
  // Reads and verifies every file, then lists the resource. Idempotent. FailedPrecondition if a
  // file is incomplete; InvalidArgument if a digest differs: that file starts again. Aborted while
  // there is a writer.
  absl::StatusOr<ResourceRecord> Finish(const std::string& id);
  // Aborted while there is a writer.
  absl::Status Delete(const std::string& id);

 private:
  friend class UploadWriter;
  // Holds an upload for one user at a time.
  class Claim;
  absl::StatusOr<std::unique_ptr<Claim>> Take(const std::string& id);
  absl::Status Verify(const UploadRecord& upload);

  ResourceStore& store_;
  FileSystem& fs_;
  const DataLayout layout_;
  const UploadLimits limits_;
  const Clock& clock_;
  const std::function<void(size_t)> on_bytes_;
  std::mutex mutex_;
  std::set<std::string> taken_;  // uploads that someone writes, finishes or deletes
};

}  // namespace nibble
