// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/publish.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "services/quantization/status_macros.h"

namespace nibble {

absl::Status MoveIntoPlace(FileSystem& fs, const DataLayout& layout, const std::string& staged,
                           const std::string& digest) {
  const absl::Status renamed =
      fs.RenameNoReplace(layout.root + "/" + staged, layout.Artifact(digest));
  const bool there = renamed.ok() || absl::IsAlreadyExists(renamed) ||
                     (absl::IsNotFound(renamed) && fs.Size(layout.Artifact(digest)).ok());
  if (!there) return renamed;
  return fs.SyncDirectory(layout.Artifacts());
}

absl::Status CompletePublishes(JobStore& store, FileSystem& fs, const DataLayout& layout,
                               const std::string& worker) {
  for (;;) {
    NIBBLE_ASSIGN_OR_RETURN(const std::optional<JobRecord> job, store.TakeOverPublish(worker));
    if (!job.has_value()) return absl::OkStatus();
    const Lease lease{job->id, job->attempt};
    const absl::Status moved = MoveIntoPlace(fs, layout, job->staged, job->artifact_digest);
    if (moved.ok()) {
      NIBBLE_RETURN_IF_ERROR(store.FinishPublish(lease));
    } else if (absl::IsNotFound(moved)) {
      NIBBLE_RETURN_IF_ERROR(store.EndAttempt(lease, AttemptEnd::kCrashed,
                                              "the finished artifact is not on disk any more",
                                              absl::ZeroDuration()));
    } else {
      return moved;  // still PUBLISHING; tried again when this lease has run out
    }
  }
}

}  // namespace nibble
