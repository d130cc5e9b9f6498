// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/sqlite_database.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/posix_status.h"
#include "engine/base/status.h"
#include "kernels/check.h"

namespace nibble {
namespace {

absl::Status StatusOf(int code, sqlite3* db) {
  const std::string message =
      absl::StrCat("job store: ", db != nullptr ? sqlite3_errmsg(db) : sqlite3_errstr(code));
  switch (code & 0xff) {
    case SQLITE_OK:
    case SQLITE_ROW:
    case SQLITE_DONE:
      return absl::OkStatus();
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::UnavailableError(message);
    case SQLITE_FULL:
      return DiskFullError(message);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(message);
    case SQLITE_CONSTRAINT:
      return absl::AlreadyExistsError(message);
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
      return absl::PermissionDeniedError(message);
    default:
      return absl::InternalError(message);
  }
}

}  // namespace

Query::Query(sqlite3* db, sqlite3_stmt* statement) : db_(db), statement_(statement) {}

Query::Query(Query&& other) noexcept
    : db_(other.db_),
      statement_(std::exchange(other.statement_, nullptr)),
      next_bind_(other.next_bind_),
      next_column_(other.next_column_),
      bind_error_(other.bind_error_) {}

Query::~Query() {
  if (statement_ == nullptr) return;
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

Query& Query::Bind(int64_t value) {
  const int code = sqlite3_bind_int64(statement_, next_bind_++, value);
  if (code != SQLITE_OK) bind_error_ = code;
  return *this;
}

Query& Query::Bind(double value) {
  const int code = sqlite3_bind_double(statement_, next_bind_++, value);
  if (code != SQLITE_OK) bind_error_ = code;
  return *this;
}

Query& Query::Bind(std::string_view text) {
  const int code = sqlite3_bind_text64(statement_, next_bind_++, text.data() ? text.data() : "",
                                       text.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
  if (code != SQLITE_OK) bind_error_ = code;
  return *this;
}

Query& Query::Bind(absl::Time time) {
  return Bind(time == absl::InfinitePast() ? int64_t{0} : absl::ToUnixMicros(time));
}

Query& Query::Bind(Blob blob) {
  const int code =
      sqlite3_bind_blob64(statement_, next_bind_++, blob.bytes.data() ? blob.bytes.data() : "",
                          blob.bytes.size(), SQLITE_TRANSIENT);
  if (code != SQLITE_OK) bind_error_ = code;
  return *this;
}

Query& Query::Bind(std::nullptr_t) {
  const int code = sqlite3_bind_null(statement_, next_bind_++);
  if (code != SQLITE_OK) bind_error_ = code;
  return *this;
}

absl::StatusOr<bool> Query::Step() {
  if (bind_error_ != SQLITE_OK) return StatusOf(bind_error_, db_);
  const int code = sqlite3_step(statement_);
  next_column_ = 0;
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return StatusOf(code, db_);
}

absl::StatusOr<int64_t> Query::Run() {
  absl::StatusOr<bool> row = Step();
  if (!row.ok()) return row.status();
  NIBBLE_CHECK(!*row);
  return sqlite3_changes64(db_);
}

int64_t Query::Int() { return sqlite3_column_int64(statement_, next_column_++); }
double Query::Double() { return sqlite3_column_double(statement_, next_column_++); }

std::string Query::Text() {
  const int column = next_column_++;
  const void* bytes = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return std::string(static_cast<const char*>(bytes), static_cast<size_t>(size));
}

absl::Time Query::Time() {
  const int64_t micros = Int();
  return micros == 0 ? absl::InfinitePast() : absl::FromUnixMicros(micros);
}

absl::StatusOr<std::unique_ptr<SqliteDatabase>> SqliteDatabase::Open(const std::string& path,
                                                                     absl::Duration busy_timeout,
                                                                     CommitObserver on_commit) {
  sqlite3* db = nullptr;
  const int code = sqlite3_open_v2(
      path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
  std::unique_ptr<SqliteDatabase> database(new SqliteDatabase(db, std::move(on_commit)));
  if (code != SQLITE_OK) {
    const absl::Status status = StatusOf(code, db);
    return Within(path, status);
  }
  sqlite3_extended_result_codes(db, 1);
  sqlite3_busy_timeout(db, static_cast<int>(absl::ToInt64Milliseconds(busy_timeout)));
  absl::Status status = database->Execute(
      "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;");
  if (!status.ok()) {
    return Within(path, status);
  }
  return database;
}

SqliteDatabase::SqliteDatabase(sqlite3* db, CommitObserver on_commit)
    : db_(db), on_commit_(std::move(on_commit)) {}

SqliteDatabase::~SqliteDatabase() {
  for (auto& [sql, statement] : statements_) sqlite3_finalize(statement);
  sqlite3_close(db_);
}

absl::StatusOr<Query> SqliteDatabase::Prepare(const char* sql) {
  sqlite3_stmt*& statement = statements_[sql];
  if (statement == nullptr) {
    const int code =
        sqlite3_prepare_v3(db_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
    if (code != SQLITE_OK) return StatusOf(code, db_);
  }
  NIBBLE_CHECK(!sqlite3_stmt_busy(statement));
  return Query(db_, statement);
}

absl::Status SqliteDatabase::Execute(const char* script) {
  return StatusOf(sqlite3_exec(db_, script, nullptr, nullptr, nullptr), db_);
}

absl::Status SqliteDatabase::Write(const std::function<absl::Status()>& body) {
  const std::lock_guard lock(mutex_);
  absl::Status status = Execute("BEGIN IMMEDIATE");
  if (!status.ok()) return status;
  status = body();
  if (status.ok()) {
    const auto begin = std::chrono::steady_clock::now();
    status = Execute("COMMIT");
    if (status.ok()) {
      if (on_commit_) {
        on_commit_(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
      }
      return status;
    }
  }
  // The first error counts; a rollback fails only where SQLite has already rolled back by itself.
  Execute("ROLLBACK").IgnoreError();
  return status;
}

}  // namespace nibble
