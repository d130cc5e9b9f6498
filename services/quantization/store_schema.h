// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/quantization/sqlite_database.h"

namespace nibble {

// Version of the tables. A database with a larger one was written by a newer program and is
// refused; a smaller one is brought up step by step.
inline constexpr int kStoreSchemaVersion = 2;

// Opens or creates the database of a data directory, with its tables. The two SQLite stores share
// it. FailedPrecondition if its version is unknown.
absl::StatusOr<std::unique_ptr<SqliteDatabase>> OpenStoreDatabase(
    const std::string& path, absl::Duration busy_timeout = absl::Seconds(10),
    SqliteDatabase::CommitObserver on_commit = nullptr);

}  // namespace nibble
