// SPDX-License-Identifier: Apache-2.0
// Published artifacts on disk: found by name, held while somebody maps them, deleted when nobody
// does.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/artifact/file_system.h"
#include "services/quantization/data_layout.h"
#include "services/quantization/job_store.h"

namespace nibble {

// While a pin lives, DeleteArtifact is refused. It is a shared lock (flock) on the directory, so it
// also counts when another process of this machine holds it, and ends with that process.
using ArtifactPin = std::shared_ptr<void>;

struct LocalArtifact {
  std::string directory;
  std::string digest;
  std::string name;  // "artifacts/x"
  ArtifactPin pin;
};

// `id` without "artifacts/". NotFound.
absl::StatusOr<LocalArtifact> ResolveArtifact(JobStore& jobs, const DataLayout& layout,
                                              const std::string& id);

// FailedPrecondition while it is pinned. Survives a crash in the middle: the sweeper goes on.
absl::Status DeleteArtifact(JobStore& jobs, FileSystem& fs, const DataLayout& layout,
                            const std::string& id);

}  // namespace nibble
