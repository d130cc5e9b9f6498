// SPDX-License-Identifier: Apache-2.0
#include "tests/services/quantization/power_cut_vfs.h"

#include <filesystem>

#include "kernels/check.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace testing {
namespace {

// SQLite allocates szOsFile bytes for a file: ours, and the real one behind it.
struct File {
  sqlite3_file base;
  std::map<std::string, std::string>* synced;  // null: what becomes of the file does not matter
  const char* name;                            // SQLite keeps it until xClose
};
static_assert(sizeof(File) % alignof(sqlite3_int64) == 0);

sqlite3_file* Real(sqlite3_file* file) {
  return reinterpret_cast<sqlite3_file*>(reinterpret_cast<File*>(file) + 1);
}

// The method of the real file, with the same arguments.
template <auto kMethod, typename... Arguments>
auto Forward(sqlite3_file* file, Arguments... arguments) {
  return (Real(file)->pMethods->*kMethod)(Real(file), arguments...);
}

int Sync(sqlite3_file* file, int flags) {
  const int code = Real(file)->pMethods->xSync(Real(file), flags);
  const File& self = *reinterpret_cast<File*>(file);
  if (code == SQLITE_OK && self.synced != nullptr) (*self.synced)[self.name] = ReadFile(self.name);
  return code;
}

using M = sqlite3_io_methods;
constexpr M kMethods = {
    .iVersion = 2,  // without mapped reads
    .xClose = Forward<&M::xClose>,
    .xRead = Forward<&M::xRead>,
    .xWrite = Forward<&M::xWrite>,
    .xTruncate = Forward<&M::xTruncate>,
    .xSync = Sync,
    .xFileSize = Forward<&M::xFileSize>,
    .xLock = Forward<&M::xLock>,
    .xUnlock = Forward<&M::xUnlock>,
    .xCheckReservedLock = Forward<&M::xCheckReservedLock>,
    .xFileControl = Forward<&M::xFileControl>,
    .xSectorSize = Forward<&M::xSectorSize>,
    .xDeviceCharacteristics = Forward<&M::xDeviceCharacteristics>,
    .xShmMap = Forward<&M::xShmMap>,
    .xShmLock = Forward<&M::xShmLock>,
    .xShmBarrier = Forward<&M::xShmBarrier>,
    .xShmUnmap = Forward<&M::xShmUnmap>,
    .xFetch = nullptr,
    .xUnfetch = nullptr,
};

}  // namespace

struct PowerCutVfs::Methods {
  static int Open(sqlite3_vfs* vfs, const char* name, sqlite3_file* file, int flags, int* out) {
    auto& self = *static_cast<PowerCutVfs*>(vfs->pAppData);
    File& opened = *reinterpret_cast<File*>(file);
    opened.base.pMethods = nullptr;
    const int code = self.real_->xOpen(self.real_, name, Real(file), flags, out);
    if (Real(file)->pMethods == nullptr) return code;  // there is nothing to close
    opened.base.pMethods = &kMethods;
    opened.synced = nullptr;
    opened.name = name;
    if (name != nullptr && (flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL)) != 0) {
      opened.synced = &self.synced_;
      self.synced_.try_emplace(name, ReadFile(name));
    }
    return code;
  }
  static int Delete(sqlite3_vfs* vfs, const char* name, int sync_directory) {
    auto& self = *static_cast<PowerCutVfs*>(vfs->pAppData);
    self.synced_.erase(name);
    return self.real_->xDelete(self.real_, name, sync_directory);
  }
};

PowerCutVfs::PowerCutVfs() : real_(sqlite3_vfs_find(nullptr)), vfs_(*real_) {
  vfs_.zName = "power-cut";
  vfs_.szOsFile += static_cast<int>(sizeof(File));
  vfs_.pNext = nullptr;
  vfs_.pAppData = this;
  vfs_.xOpen = Methods::Open;
  vfs_.xDelete = Methods::Delete;
  NIBBLE_CHECK(sqlite3_vfs_register(&vfs_, /*makeDflt=*/1) == SQLITE_OK);
}

PowerCutVfs::~PowerCutVfs() {
  sqlite3_vfs_unregister(&vfs_);
  sqlite3_vfs_register(real_, /*makeDflt=*/1);
}

void PowerCutVfs::Leave(const std::string& directory) const {
  std::filesystem::create_directories(directory);
  for (const auto& [name, contents] : synced_) {
    WriteFile(directory + "/" + std::filesystem::path(name).filename().string(), contents);
  }
}

}  // namespace testing
}  // namespace nibble
