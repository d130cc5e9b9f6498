// SPDX-License-Identifier: Apache-2.0
// The table of jobs as records. Under the database's mutex.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "services/quantization/job_store.h"
#include "services/quantization/sqlite_database.h"

namespace nibble {

// In the order that ReadJob reads them. A macro, for statements are literals.
#define NIBBLE_JOB_COLUMNS                                                                     \
  "id, tenant, creator, spec, recipe, scheme, kv_format, source, artifact_id, state, reason, " \
  "message, pause_reason, cancel_requested, attempt, idle_attempts, leases_lost, worker, "     \
  "lease_expiry, not_before, create_time, start_time, attempt_time, end_time, "                \
  "attempt_fraction, phase, blocks_done, blocks_total, fraction, progress_message, "           \
  "source_digest, texts_digest, artifact_digest, staged, artifact_bytes, "                     \
  "(SELECT COALESCE(MAX(sequence), 0) FROM events WHERE events.job = jobs.id), number"

// Returns the job's number, which orders lists.
int64_t ReadJob(Query& row, JobRecord& job);
// NotFound if there is none of that id.
absl::StatusOr<JobRecord> FindJob(SqliteDatabase& db, const std::string& id);

// UTF-8 text cut to at most `limit` bytes, never inside a character: what is stored of texts that
// others wrote.
std::string_view CutText(std::string_view text, size_t limit);

}  // namespace nibble
