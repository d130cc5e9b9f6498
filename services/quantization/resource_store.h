// SPDX-License-Identifier: Apache-2.0
// The durable record of uploads and of what they became: models and calibration sets.
//
// An upload is ACTIVE (takes bytes) or FINISHED (verified). Its files lie in sources/<upload id>/
// from beginning to end: finishing is one commit, which lists the resource and hands it the
// directory, so that no rename can be half done and no directory name is ever used twice. Only what
// the store calls synced counts. Thread-safe; errors as in job_store.h.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace nibble {

// The numbers are stored, and are those of nibble.v1.Upload.Kind.
enum class ResourceKind : uint8_t { kModel = 1, kCalibrationSet = 2 };

// The numbers are stored, and are those of nibble.v1.Upload.State.
enum class UploadState : uint8_t { kActive = 1, kFinished = 2 };

struct FileRecord {
  std::string name;
  int64_t bytes = 0;
  std::string sha256;        // lower-case hex
  int64_t synced_bytes = 0;  // uploads only
};

struct UploadRecord {
  int64_t number = 0;  // orders lists
  std::string id;
  std::string tenant;
  std::string creator;
  ResourceKind kind = ResourceKind::kModel;
  UploadState state = UploadState::kActive;
  std::string resource;  // "models/x" or "calibrationSets/y"
  std::vector<FileRecord> files;
  absl::Time create_time = absl::InfinitePast();
  absl::Time expire_time = absl::InfinitePast();
};

struct ResourceRecord {
  std::string name;  // "models/x" or "calibrationSets/y"
  ResourceKind kind = ResourceKind::kModel;
  std::string tenant;
  std::string creator;
  std::string digest;     // FilesDigest() of a model, sha256 of a text's file
  std::string directory;  // beneath sources/: the id of the upload it was
  std::vector<FileRecord> files;
  absl::Time create_time = absl::InfinitePast();

  int64_t bytes() const;
};

struct ResourcePage {
  std::vector<ResourceRecord> resources;  // newest first
  int64_t next = 0;                       // pass as `before`; 0 = the end
};

struct UploadQuota {
  int32_t uploads = 16;              // unfinished ones of a caller (tenant and name)
  int64_t bytes = int64_t{1} << 40;  // of a caller's unfinished uploads and resources
};

class ResourceStore {
 public:
  virtual ~ResourceStore() = default;

  // AlreadyExists if the resource's name is taken by a resource or an unfinished upload;
  // ResourceExhausted beyond the quota.
  virtual absl::Status CreateUpload(const UploadRecord& upload, const UploadQuota& quota) = 0;
  virtual absl::StatusOr<UploadRecord> GetUpload(const std::string& id) = 0;
  // Unfinished ones of a tenant ("" = any), newest first, older than `before` (0 = from the
  // newest).
  virtual absl::StatusOr<std::vector<UploadRecord>> ListUploads(const std::string& tenant,
                                                                int32_t limit, int64_t before) = 0;
  // Forgets uploads whose time has come; their resources, if they became some, stay.
  virtual absl::Status DeleteExpiredUploads(absl::Time now) = 0;
  // Bytes [0, synced) of the file are on disk. FailedPrecondition unless ACTIVE.
  virtual absl::Status RecordSynced(const std::string& id, const std::string& file, int64_t synced,
                                    absl::Time expire_time) = 0;
  // ACTIVE -> FINISHED, and the resource is listed. FailedPrecondition if a file is incomplete.
  virtual absl::StatusOr<ResourceRecord> FinishUpload(const std::string& id,
                                                      const std::string& digest) = 0;
  // The resource of a finished upload stays.
  virtual absl::Status DeleteUpload(const std::string& id) = 0;

  virtual absl::StatusOr<ResourceRecord> GetResource(const std::string& name) = 0;
  // Of one kind, tenant ("" = any) and digest ("" = any), older than `before` (0 = from the
  // newest).
  virtual absl::StatusOr<ResourcePage> ListResources(ResourceKind kind, const std::string& tenant,
                                                     const std::string& digest, int32_t limit,
                                                     int64_t before) = 0;
  // Takes it out of the list; its directory is then anybody's to remove. FailedPrecondition while
  // an unfinished job uses it.
  virtual absl::Status DeleteResource(const std::string& name) = 0;
  // Directories beneath sources/ that an upload or a resource names.
  virtual absl::StatusOr<std::set<std::string>> SourceDirectories() = 0;
};

}  // namespace nibble
