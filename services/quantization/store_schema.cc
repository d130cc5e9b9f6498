// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/store_schema.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace nibble {
namespace {

// Times are microseconds since 1970, 0 = unset. Texts that are JSON say so.
constexpr char kVersion1[] = R"sql(
CREATE TABLE jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  tenant TEXT NOT NULL,
  creator TEXT NOT NULL,
  request_id TEXT,
  request_digest TEXT NOT NULL,
  spec BLOB NOT NULL,
  recipe TEXT NOT NULL,
  scheme TEXT NOT NULL,
  kv_format TEXT NOT NULL,
  source TEXT NOT NULL,
  artifact_id TEXT NOT NULL,
  state INTEGER NOT NULL,
  reason INTEGER NOT NULL DEFAULT 0,
  message TEXT NOT NULL DEFAULT '',
  pause_reason TEXT NOT NULL DEFAULT '',
  cancel_requested INTEGER NOT NULL DEFAULT 0,
  attempt INTEGER NOT NULL DEFAULT 0,
  idle_attempts INTEGER NOT NULL DEFAULT 0,
  leases_lost INTEGER NOT NULL DEFAULT 0,
  worker TEXT NOT NULL DEFAULT '',
  lease_expiry INTEGER NOT NULL DEFAULT 0,
  not_before INTEGER NOT NULL DEFAULT 0,
  queued_time INTEGER NOT NULL,
  create_time INTEGER NOT NULL,
  start_time INTEGER NOT NULL DEFAULT 0,
  attempt_time INTEGER NOT NULL DEFAULT 0,
  attempt_fraction REAL NOT NULL DEFAULT -1,
  block_time INTEGER NOT NULL DEFAULT 0,
  end_time INTEGER NOT NULL DEFAULT 0,
  phase TEXT NOT NULL DEFAULT '',
  blocks_done INTEGER NOT NULL DEFAULT 0,
  blocks_total INTEGER NOT NULL DEFAULT 0,
  best_blocks INTEGER NOT NULL DEFAULT 0,
  fraction REAL NOT NULL DEFAULT 0,
  progress_message TEXT NOT NULL DEFAULT '',
  log_lines INTEGER NOT NULL DEFAULT 0,
  source_digest TEXT NOT NULL DEFAULT '',
  texts_digest TEXT NOT NULL DEFAULT '',
  artifact_digest TEXT NOT NULL DEFAULT '',
  staged TEXT NOT NULL DEFAULT '',
  artifact_bytes INTEGER NOT NULL DEFAULT 0,
  quality TEXT NOT NULL DEFAULT '{}',
  report TEXT NOT NULL DEFAULT '',
  UNIQUE (tenant, creator, request_id)
);
CREATE INDEX jobs_by_state ON jobs (state, number);

CREATE TABLE job_resources (
  job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
  resource TEXT NOT NULL,
  PRIMARY KEY (job, resource)
) WITHOUT ROWID;
CREATE INDEX job_resources_by_resource ON job_resources (resource);

CREATE TABLE checkpoints (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
  attempt INTEGER NOT NULL,
  blocks_done INTEGER NOT NULL,
  files TEXT NOT NULL  -- JSON array of [name, sha256]
);
CREATE INDEX checkpoints_by_job ON checkpoints (job, number);

CREATE TABLE events (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
  time INTEGER NOT NULL,
  kind INTEGER NOT NULL,
  state INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  attempt_end INTEGER NOT NULL DEFAULT 0,
  phase TEXT NOT NULL DEFAULT '',
  blocks_done INTEGER NOT NULL DEFAULT 0,
  blocks_total INTEGER NOT NULL DEFAULT 0,
  fraction REAL NOT NULL DEFAULT 0,
  progress_message TEXT NOT NULL DEFAULT '',
  message TEXT NOT NULL DEFAULT '',
  seconds REAL NOT NULL DEFAULT 0
);
CREATE INDEX events_by_job ON events (job, sequence);

CREATE TABLE logs (
  line INTEGER PRIMARY KEY AUTOINCREMENT,
  job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
  time INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  text TEXT NOT NULL
);
CREATE INDEX logs_by_job ON logs (job, line);

CREATE TABLE artifacts (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  digest TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  scheme TEXT NOT NULL,
  recipe TEXT NOT NULL,
  kv_format TEXT NOT NULL,
  quality TEXT NOT NULL,  -- JSON object
  job TEXT NOT NULL,
  source TEXT NOT NULL,
  source_digest TEXT NOT NULL,
  tenant TEXT NOT NULL,
  creator TEXT NOT NULL,
  create_time INTEGER NOT NULL
);
CREATE INDEX artifacts_by_digest ON artifacts (digest);

-- Directories beneath artifacts/ that are being deleted.
CREATE TABLE doomed (digest TEXT PRIMARY KEY) WITHOUT ROWID;

CREATE TABLE uploads (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  tenant TEXT NOT NULL,
  creator TEXT NOT NULL,
  kind INTEGER NOT NULL,
  state INTEGER NOT NULL,
  resource TEXT NOT NULL,
  create_time INTEGER NOT NULL,
  expire_time INTEGER NOT NULL
);

CREATE TABLE upload_files (
  upload TEXT NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
  position INTEGER NOT NULL,
  name TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  sha256 TEXT NOT NULL,
  synced INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (upload, name)
) WITHOUT ROWID;

CREATE TABLE resources (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  kind INTEGER NOT NULL,
  tenant TEXT NOT NULL,
  creator TEXT NOT NULL,
  digest TEXT NOT NULL,
  directory TEXT NOT NULL UNIQUE,
  bytes INTEGER NOT NULL,
  files TEXT NOT NULL,  -- JSON array of [name, bytes, sha256], sorted by name
  create_time INTEGER NOT NULL
);
)sql";

// A block is new if no checkpoint of its basis has it.
constexpr char kVersion2[] = R"sql(
ALTER TABLE checkpoints ADD COLUMN fingerprint TEXT NOT NULL DEFAULT '';
ALTER TABLE checkpoints ADD COLUMN tier TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs DROP COLUMN best_blocks;
)sql";

// What makes each version of the one before it.
constexpr const char* kSteps[kStoreSchemaVersion] = {kVersion1, kVersion2};

absl::Status EnsureSchema(SqliteDatabase& database) {
  return database.Write([&]() -> absl::Status {
    int64_t version = 0;
    {
      absl::StatusOr<Query> query = database.Prepare("PRAGMA user_version");
      if (!query.ok()) return query.status();
      absl::StatusOr<bool> row = query->Step();
      if (!row.ok()) return row.status();
      version = query->Int();
    }
    if (version > kStoreSchemaVersion) {
      return absl::FailedPreconditionError(absl::StrCat("job store: schema version ", version,
                                                        " is newer than this program's ",
                                                        kStoreSchemaVersion));
    }
    for (; version < kStoreSchemaVersion; ++version) {
      const absl::Status status = database.Execute(kSteps[version]);
      if (!status.ok()) return status;
    }
    return database.Execute(absl::StrCat("PRAGMA user_version=", kStoreSchemaVersion).c_str());
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<SqliteDatabase>> OpenStoreDatabase(
    const std::string& path, absl::Duration busy_timeout,
    SqliteDatabase::CommitObserver on_commit) {
  absl::StatusOr<std::unique_ptr<SqliteDatabase>> database =
      SqliteDatabase::Open(path, busy_timeout, std::move(on_commit));
  if (!database.ok()) return database.status();
  const absl::Status status = EnsureSchema(**database);
  if (!status.ok()) {
    return Within(path, status);
  }
  return database;
}

}  // namespace nibble
