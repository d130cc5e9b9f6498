// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "absl/time/time.h"
#include "services/quantization/clock.h"
#include "services/quantization/job_store.h"
#include "services/quantization/sqlite_database.h"

namespace nibble {

struct LeaseOptions {
  absl::Duration lease = absl::Seconds(30);
  // Whether the process of a worker identity still lives; see WorkerLives().
  std::function<bool(std::string_view worker)> worker_lives;
};

// The embedded store. `database` is an OpenStoreDatabase(); it and `clock` must outlive the store.
std::unique_ptr<JobStore> MakeSqliteJobStore(SqliteDatabase& database, const Clock& clock,
                                             LeaseOptions options);

}  // namespace nibble
