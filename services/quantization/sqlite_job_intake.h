// SPDX-License-Identifier: Apache-2.0
// How jobs come into the store: once for each request id, within the tenant's limit, with their
// artifact's name reserved. Under the database's mutex, Insert inside a transaction.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/quantization/clock.h"
#include "services/quantization/job_store.h"
#include "services/quantization/sqlite_database.h"
#include "services/quantization/sqlite_job_history.h"

namespace nibble {

class SqliteJobIntake {
 public:
  SqliteJobIntake(SqliteDatabase& database, const Clock& clock, SqliteJobHistory& history)
      : db_(database), clock_(clock), history_(history) {}

  // As JobStore's.
  absl::StatusOr<std::optional<JobRecord>> FindRequest(const std::string& tenant,
                                                       const std::string& creator,
                                                       const std::string& request_id,
                                                       const std::string& digest);
  // As JobStore::CreateJob, of a request that FindRequest does not know.
  absl::Status Insert(const NewJob& job);

 private:
  template <typename RequestId>
  absl::Status InsertRow(const NewJob& job, const RequestId& request_id, absl::Time now);

  SqliteDatabase& db_;
  const Clock& clock_;
  SqliteJobHistory& history_;
};

}  // namespace nibble
