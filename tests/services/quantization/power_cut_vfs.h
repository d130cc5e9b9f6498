// SPDX-License-Identifier: Apache-2.0
// A file system for SQLite that knows what a power cut would leave of its databases.
#pragma once

#include <sqlite3.h>

#include <map>
#include <string>

namespace nibble {
namespace testing {

// While it lives, databases are opened through it; they must be closed before it goes. Reads and
// writes are those of SQLite's own file system; besides, it keeps the contents that each file had
// when it was last synced. Databases and their logs only. Not thread-safe.
class PowerCutVfs {
 public:
  PowerCutVfs();
  ~PowerCutVfs();
  PowerCutVfs(const PowerCutVfs&) = delete;
  PowerCutVfs& operator=(const PowerCutVfs&) = delete;

  // Writes what would be left of every file into `directory`, under the file's own name.
  void Leave(const std::string& directory) const;

 private:
  struct Methods;

  sqlite3_vfs* const real_;
  sqlite3_vfs vfs_;
  std::map<std::string, std::string> synced_;  // by path
};

}  // namespace testing
}  // namespace nibble
