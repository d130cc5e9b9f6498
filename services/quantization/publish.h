// SPDX-License-Identifier: Apache-2.0
// Moving a finished artifact to its place, so that a crash at any moment leaves it either there and
// listed, or not listed and tried again:
//   store: PUBLISHING(digest) -> rename without replacing -> fsync the parent -> store: SUCCEEDED.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "engine/artifact/file_system.h"
#include "services/quantization/data_layout.h"
#include "services/quantization/job_store.h"

namespace nibble {

// The rename and the fsync. The directory of that digest may already be there (another job made the
// same contents, or this one got that far before). NotFound if neither it nor `staged` (relative to
// the data directory) is.
absl::Status MoveIntoPlace(FileSystem& fs, const DataLayout& layout, const std::string& staged,
                           const std::string& digest);

// Completes or reverts every PUBLISHING job whose worker is dead or late. `worker`: who does it.
absl::Status CompletePublishes(JobStore& store, FileSystem& fs, const DataLayout& layout,
                               const std::string& worker);

}  // namespace nibble
