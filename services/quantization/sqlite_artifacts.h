// SPDX-License-Identifier: Apache-2.0
// Published artifacts, and directories of artifacts that are being deleted. Under the database's
// mutex, the writing methods inside a transaction.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/quantization/clock.h"
#include "services/quantization/job_store.h"
#include "services/quantization/sqlite_database.h"

namespace nibble {

class SqliteArtifacts {
 public:
  SqliteArtifacts(SqliteDatabase& database, const Clock& clock) : db_(database), clock_(clock) {}

  // As JobStore's.
  absl::StatusOr<ArtifactRecord> Get(const std::string& id);
  absl::StatusOr<ArtifactPage> List(const std::string& tenant, int32_t limit, int64_t before);
  absl::StatusOr<int64_t> Bytes();
  absl::StatusOr<std::optional<std::string>> Delete(const std::string& id);
  absl::StatusOr<bool> DoomIfOrphan(const std::string& digest);
  absl::StatusOr<std::vector<std::string>> ListDoomed();
  absl::Status FinishDelete(const std::string& digest);

  absl::StatusOr<bool> IsDoomed(const std::string& digest);
  // Lists the artifact of a PUBLISHING job; the number of jobs that matched the lease.
  absl::StatusOr<int64_t> Add(const Lease& lease);

 private:
  SqliteDatabase& db_;
  const Clock& clock_;
};

}  // namespace nibble
