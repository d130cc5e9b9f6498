// SPDX-License-Identifier: Apache-2.0
// Removes what nobody names any more. Every directory is named by the store before it is made, so
// what is on disk and not in the store afterwards is left over.
#pragma once

#include "absl/status/status.h"
#include "engine/artifact/file_system.h"
#include "services/quantization/clock.h"
#include "services/quantization/data_layout.h"
#include "services/quantization/job_store.h"
#include "services/quantization/resource_store.h"

namespace nibble {

// Removes expired uploads, sources of deleted models and calibration sets, directories of deleted
// jobs, working directories of ended jobs, files of earlier attempts that no checkpoint names, and
// artifact directories without an artifact. Nothing of a job under a lease is touched but its
// earlier attempts. Goes on after an error and returns the first.
absl::Status Sweep(JobStore& jobs, ResourceStore& resources, FileSystem& fs,
                   const DataLayout& layout, const Clock& clock);

}  // namespace nibble
