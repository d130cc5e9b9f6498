// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/file_system.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "engine/base/cat.h"
#include "engine/base/posix_status.h"

namespace nibble {
namespace {

class PosixFile final : public WritableFile {
 public:
  PosixFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  ~PosixFile() override {
    if (fd_ >= 0) ::close(fd_);
  }

  absl::Status Append(std::string_view bytes) override {
    while (!bytes.empty()) {
      const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
      if (written < 0) {
        if (errno == EINTR) continue;
        return ErrnoStatus(errno, "write", path_);
      }
      bytes.remove_prefix(static_cast<size_t>(written));
    }
    return absl::OkStatus();
  }

  absl::Status Sync() override {
    if (::fsync(fd_) != 0) return ErrnoStatus(errno, "fsync", path_);
    return absl::OkStatus();
  }

  absl::Status Close() override {
    if (fd_ < 0) return absl::OkStatus();
    const int fd = std::exchange(fd_, -1);
    // After EINTR the descriptor is closed all the same on Linux.
    if (::close(fd) != 0 && errno != EINTR) return ErrnoStatus(errno, "close", path_);
    return absl::OkStatus();
  }

 private:
  int fd_;
  std::string path_;
};

class PosixFileSystemImpl final : public FileSystem {
 public:
  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0) return ErrnoStatus(errno, "create", path);
    return std::make_unique<PosixFile>(fd, path);
  }

  absl::StatusOr<std::unique_ptr<WritableFile>> Continue(const std::string& path,
                                                         int64_t size) override {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return ErrnoStatus(errno, "open", path);
    auto file = std::make_unique<PosixFile>(fd, path);
    struct stat info = {};
    if (::fstat(fd, &info) != 0) return ErrnoStatus(errno, "stat", path);
    if (size < 0 || info.st_size < size) {
      return absl::InvalidArgumentError(
          Cat(path, ": has ", info.st_size, " bytes, cannot go on at offset ", size));
    }
    if (::ftruncate(fd, size) != 0) return ErrnoStatus(errno, "truncate", path);
    if (::lseek(fd, size, SEEK_SET) < 0) return ErrnoStatus(errno, "seek", path);
    return file;
  }

  absl::Status CreateDirectory(const std::string& path) override {
    if (::mkdir(path.c_str(), 0755) != 0) return ErrnoStatus(errno, "create directory", path);
    return absl::OkStatus();
  }

  absl::Status SyncDirectory(const std::string& path) override {
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return ErrnoStatus(errno, "open directory", path);
    const int result = ::fsync(fd);
    const int error = errno;
    ::close(fd);
    if (result != 0) return ErrnoStatus(error, "fsync directory", path);
    return absl::OkStatus();
  }

  absl::Status RenameNoReplace(const std::string& from, const std::string& to) override {
    if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) != 0) {
      return ErrnoStatus(errno, Cat("rename ", from, " to"), to);
    }
    return absl::OkStatus();
  }

  absl::Status Remove(const std::string& path) override {
    if (::remove(path.c_str()) != 0) return ErrnoStatus(errno, "remove", path);
    return absl::OkStatus();
  }

  absl::Status RemoveTree(const std::string& path) override {
    if (::unlink(path.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
    if (errno != EISDIR && errno != EPERM) return ErrnoStatus(errno, "remove", path);
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return ErrnoStatus(errno, "open directory", path);
    if (absl::Status status = EmptyDirectory(fd, path); !status.ok()) return status;
    if (::rmdir(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, "remove", path);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override {
    DIR* directory = ::opendir(path.c_str());
    if (directory == nullptr) return ErrnoStatus(errno, "list", path);
    absl::StatusOr<std::vector<std::string>> names = ReadNames(directory, path);
    ::closedir(directory);
    return names;
  }

  absl::StatusOr<int64_t> Size(const std::string& path) override {
    struct stat info = {};
    if (::stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "stat", path);
    return static_cast<int64_t>(info.st_size);
  }

  absl::StatusOr<int64_t> FreeBytes(const std::string& path) override {
    struct statvfs info = {};
    if (::statvfs(path.c_str(), &info) != 0) return ErrnoStatus(errno, "statvfs", path);
    return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
  }

 private:
  static absl::StatusOr<std::vector<std::string>> ReadNames(DIR* directory,
                                                            const std::string& path) {
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(directory)) {
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
      errno = 0;
    }
    if (errno != 0) return ErrnoStatus(errno, "list", path);
    std::sort(names.begin(), names.end());
    return names;
  }

  // Removes what is in the directory `fd`, which it closes. Every step is relative to a descriptor
  // opened without following links, so a directory swapped for a link leads nowhere else.
  static absl::Status EmptyDirectory(int fd, const std::string& path) {
    DIR* directory = ::fdopendir(fd);
    if (directory == nullptr) {
      const int error = errno;
      ::close(fd);
      return ErrnoStatus(error, "list", path);
    }
    absl::StatusOr<std::vector<std::string>> names = ReadNames(directory, path);
    absl::Status status = names.status();
    if (status.ok()) {
      for (const std::string& name : *names) {
        status = RemoveEntry(fd, name, Cat(path, "/", name));
        if (!status.ok()) break;
      }
    }
    ::closedir(directory);
    return status;
  }

  static absl::Status RemoveEntry(int parent, const std::string& name, const std::string& path) {
    if (::unlinkat(parent, name.c_str(), 0) == 0 || errno == ENOENT) return absl::OkStatus();
    if (errno != EISDIR && errno != EPERM) return ErrnoStatus(errno, "remove", path);
    const int child =
        ::openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (child < 0) return ErrnoStatus(errno, "open directory", path);
    if (absl::Status status = EmptyDirectory(child, path); !status.ok()) return status;
    if (::unlinkat(parent, name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT) {
      return ErrnoStatus(errno, "remove", path);
    }
    return absl::OkStatus();
  }
};

}  // namespace

FileSystem& PosixFileSystem() {
  static PosixFileSystemImpl* const file_system = new PosixFileSystemImpl();
  return *file_system;
}

}  // namespace nibble
