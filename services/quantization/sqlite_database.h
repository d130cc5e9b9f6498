// SPDX-License-Identifier: Apache-2.0
// A thin layer over SQLite: statements that are prepared once, transactions that end, statuses
// instead of codes. Only the stores of this directory use it.
#pragma once

#include <sqlite3.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace nibble {

// A parameter that is bytes rather than text.
struct Blob {
  std::string_view bytes;
};

// One use of a prepared statement: bind in order, step, read columns in order. Resets the statement
// when it goes out of scope. Binding errors surface in Step().
class Query {
 public:
  Query(sqlite3* db, sqlite3_stmt* statement);
  ~Query();
  Query(Query&& other) noexcept;
  Query(const Query&) = delete;
  Query& operator=(const Query&) = delete;
  Query& operator=(Query&&) = delete;

  Query& Bind(int64_t value);
  Query& Bind(int32_t value) { return Bind(int64_t{value}); }
  Query& Bind(bool value) { return Bind(int64_t{value ? 1 : 0}); }
  Query& Bind(double value);
  Query& Bind(std::string_view text);
  Query& Bind(const std::string& text) { return Bind(std::string_view(text)); }
  Query& Bind(const char* text) { return Bind(std::string_view(text)); }
  Query& Bind(absl::Time time);  // microseconds; InfinitePast is 0
  Query& Bind(Blob blob);
  template <typename Enum>
  requires std::is_enum_v<Enum> Query& Bind(Enum value) {
    return Bind(static_cast<int64_t>(value));
  }
  Query& Bind(std::nullptr_t);  // NULL

  // True if there is a row. Unavailable if the database stayed locked, ResourceExhausted if the
  // disk is full, DataLoss if the file is damaged, AlreadyExists if a unique key is taken.
  absl::StatusOr<bool> Step();
  // Runs a statement that returns no rows; the number of rows it changed.
  absl::StatusOr<int64_t> Run();

  // The next column of the current row.
  int64_t Int();
  int32_t Int32() { return static_cast<int32_t>(Int()); }
  bool Bool() { return Int() != 0; }
  double Double();
  std::string Text();  // also blobs
  absl::Time Time();

 private:
  sqlite3* db_;
  sqlite3_stmt* statement_;
  int next_bind_ = 1;
  int next_column_ = 0;
  int bind_error_ = SQLITE_OK;
};

// One connection. Use it under mutex(): the connection itself is not thread-safe.
class SqliteDatabase {
 public:
  // Called with the seconds that each commit took.
  using CommitObserver = std::function<void(double seconds)>;

  // Opens or creates the file: WAL, synchronous=FULL, foreign keys on, `busy_timeout` of patience.
  static absl::StatusOr<std::unique_ptr<SqliteDatabase>> Open(const std::string& path,
                                                              absl::Duration busy_timeout,
                                                              CommitObserver on_commit);
  ~SqliteDatabase();
  SqliteDatabase(const SqliteDatabase&) = delete;
  SqliteDatabase& operator=(const SqliteDatabase&) = delete;

  std::mutex& mutex() { return mutex_; }

  // For the four below: `sql` must be a literal (its address is the key) and hold one statement;
  // its parameters are bound in order. The caller holds the mutex, or is inside Write().
  absl::StatusOr<Query> Prepare(const char* sql);
  // Runs a statement without results; the number of rows it changed.
  template <typename... Parameters>
  absl::StatusOr<int64_t> Run(const char* sql, const Parameters&... parameters) {
    absl::StatusOr<Query> query = Prepare(sql);
    if (!query.ok()) return query.status();
    (query->Bind(parameters), ...);
    return query->Run();
  }
  // Calls `on_row` with the query at each row of the result. `on_row` must not use this database.
  template <typename OnRow, typename... Parameters>
  absl::Status Each(const char* sql, OnRow&& on_row, const Parameters&... parameters) {
    absl::StatusOr<Query> query = Prepare(sql);
    if (!query.ok()) return query.status();
    (query->Bind(parameters), ...);
    for (;;) {
      absl::StatusOr<bool> row = query->Step();
      if (!row.ok()) return row.status();
      if (!*row) return absl::OkStatus();
      on_row(*query);
    }
  }
  // The first column of the first row, an integer; 0 if there is no row.
  template <typename... Parameters>
  absl::StatusOr<int64_t> Integer(const char* sql, const Parameters&... parameters) {
    int64_t value = 0;
    absl::Status status = Each(
        sql, [&value](Query& row) { value = row.Int(); }, parameters...);
    if (!status.ok()) return status;
    return value;
  }

  // Runs a script without results.
  absl::Status Execute(const char* script);

  // Runs `body` inside BEGIN IMMEDIATE ... COMMIT; rolls back if it fails. `body` must only use
  // this database: the write lock of every process is held meanwhile. Takes the mutex.
  absl::Status Write(const std::function<absl::Status()>& body);

  int64_t last_insert_rowid() const { return sqlite3_last_insert_rowid(db_); }

 private:
  SqliteDatabase(sqlite3* db, CommitObserver on_commit);

  sqlite3* db_;
  CommitObserver on_commit_;
  std::mutex mutex_;
  std::unordered_map<const char*, sqlite3_stmt*> statements_;
};

}  // namespace nibble
