// SPDX-License-Identifier: Apache-2.0
// Where things lie in a data directory. One writer made each directory; the store decides what
// counts.
//
//   nibble.db                      the store
//   service.lock                   held by the one service that owns the directory
//   sources/<upload>/<file>        models and calibration sets, and uploads on their way
//   jobs/<job>/attempt-<n>/        working directory of one attempt: checkpoints, staged artifact
//   jobs/<job>/report.html         of an ended job
//   artifacts/<digest>/            published, immutable
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/artifact/file_system.h"
#include "services/quantization/status_macros.h"

namespace nibble {

struct DataLayout {
  std::string root;

  std::string Database() const { return root + "/nibble.db"; }
  std::string ServiceLock() const { return root + "/service.lock"; }
  std::string Sources() const { return root + "/sources"; }
  std::string Source(const std::string& upload) const { return Sources() + "/" + upload; }
  std::string Jobs() const { return root + "/jobs"; }
  std::string Job(const std::string& job) const { return Jobs() + "/" + job; }
  static std::string AttemptName(int64_t attempt) { return absl::StrCat("attempt-", attempt); }
  std::string Attempt(const std::string& job, int64_t attempt) const {
    return absl::StrCat(Job(job), "/", AttemptName(attempt));
  }
  std::string ReportHtml(const std::string& job) const { return Job(job) + "/report.html"; }
  std::string Artifacts() const { return root + "/artifacts"; }
  std::string Artifact(const std::string& digest) const { return Artifacts() + "/" + digest; }

  // Makes what is not there yet, durably.
  absl::Status Create(FileSystem& fs) const {
    for (const std::string& directory : {root, Sources(), Jobs(), Artifacts()}) {
      const absl::Status status = fs.CreateDirectory(directory);
      if (!status.ok() && !absl::IsAlreadyExists(status)) return status;
    }
    return fs.SyncDirectory(root);
  }
};

}  // namespace nibble
