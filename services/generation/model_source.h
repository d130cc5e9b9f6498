// SPDX-License-Identifier: Apache-2.0
// Where a model that is to be served lies on disk.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace nibble {

struct ModelSource {
  std::string path;                     // directory or GGUF file
  std::string digest;                   // of an artifact; "" = to be computed from the files
  std::shared_ptr<void> while_loading;  // lets go of something when the load is over
  std::shared_ptr<void> while_serving;  // lets go of something when the model is unloaded
};

// A source that a caller names by path. Its files are copied to a directory beneath `scratch`
// (which is made if it is not there) and live until the load is over: what is mapped belongs to the
// server and cannot change or shrink under it. On file systems that share blocks the copy costs
// nothing.
//
// Every file must lie beneath `root` even after symbolic links have been followed (openat2,
// RESOLVE_BENEATH): InvalidArgument if one does not. NotFound if there is no such model,
// PermissionDenied without a root, ResourceExhausted if the disk has no room for the copy.
absl::StatusOr<ModelSource> CopyFromRoot(const std::string& root, const std::string& path,
                                         const std::string& scratch);

// Removes what loads that were cut short have left. Before any load.
absl::Status SweepScratch(const std::string& scratch);

}  // namespace nibble
