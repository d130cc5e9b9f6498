// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/artifacts.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/base/posix_status.h"
#include "services/quantization/status_macros.h"

namespace nibble {
namespace {

// A lock of that kind on the directory; null if another one stands against it.
absl::StatusOr<ArtifactPin> Lock(const std::string& directory, int kind) {
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open", directory);
  ArtifactPin pin(nullptr, [fd](void*) { ::close(fd); });
  if (::flock(fd, kind | LOCK_NB) == 0) return pin;
  if (errno == EWOULDBLOCK) return absl::UnavailableError("locked");
  return ErrnoStatus(errno, "lock", directory);
}

}  // namespace

absl::StatusOr<LocalArtifact> ResolveArtifact(JobStore& jobs, const DataLayout& layout,
                                              const std::string& id) {
  NIBBLE_ASSIGN_OR_RETURN(const ArtifactRecord record, jobs.GetArtifact(id));
  LocalArtifact artifact{layout.Artifact(record.digest), record.digest,
                         absl::StrCat("artifacts/", id), nullptr};
  absl::StatusOr<ArtifactPin> pin = Lock(artifact.directory, LOCK_SH);
  if (!pin.ok()) {
    return absl::FailedPreconditionError(absl::StrCat("artifacts/", id, " is being deleted (",
                                                      std::string(pin.status().message()), ")"));
  }
  artifact.pin = *std::move(pin);
  // It may have been deleted between the two lines above.
  NIBBLE_ASSIGN_OR_RETURN(const ArtifactRecord again, jobs.GetArtifact(id));
  if (again.digest != record.digest) {
    return absl::AbortedError(absl::StrCat("artifacts/", id, " was replaced meanwhile"));
  }
  return artifact;
}

absl::Status DeleteArtifact(JobStore& jobs, FileSystem& fs, const DataLayout& layout,
                            const std::string& id) {
  NIBBLE_ASSIGN_OR_RETURN(const ArtifactRecord record, jobs.GetArtifact(id));
  const std::string directory = layout.Artifact(record.digest);
  absl::StatusOr<ArtifactPin> lock = Lock(directory, LOCK_EX);
  if (absl::IsUnavailable(lock.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat("artifacts/", id, " is loaded or being downloaded; unload it first"));
  }
  // A directory that is already gone leaves only the name to be removed.
  if (!lock.ok() && !absl::IsNotFound(lock.status())) return lock.status();
  NIBBLE_ASSIGN_OR_RETURN(const std::optional<std::string> doomed, jobs.DeleteArtifact(id));
  if (!doomed.has_value()) return absl::OkStatus();  // another artifact has the same contents
  NIBBLE_RETURN_IF_ERROR(fs.RemoveTree(layout.Artifact(*doomed)));
  NIBBLE_RETURN_IF_ERROR(fs.SyncDirectory(layout.Artifacts()));
  return jobs.FinishDelete(*doomed);
}

}  // namespace nibble
