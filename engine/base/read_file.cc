// SPDX-License-Identifier: Apache-2.0
#include "engine/base/read_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/cleanup/cleanup.h"
#include "engine/base/cat.h"
#include "engine/base/posix_status.h"

namespace nibble {

absl::StatusOr<OpenedFile> OpenRegularFile(const std::string& path) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return ErrnoStatus(errno, "open", path);
  struct stat info = {};
  if (::fstat(fd, &info) != 0) {
    const int error = errno;
    ::close(fd);
    return ErrnoStatus(error, "stat", path);
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd);
    return absl::InvalidArgumentError(Cat(path, ": is not a regular file"));
  }
  return OpenedFile{fd, static_cast<int64_t>(info.st_size)};
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, int64_t max_bytes) {
  absl::StatusOr<OpenedFile> file = OpenRegularFile(path);
  if (!file.ok()) return file.status();
  const auto close_file = absl::MakeCleanup([&file] { ::close(file->fd); });
  if (file->size > max_bytes) {
    return absl::InvalidArgumentError(
        Cat(path, ": has ", file->size, " bytes, at most ", max_bytes, " are allowed"));
  }
  std::string text(static_cast<size_t>(file->size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t got = ::read(file->fd, text.data() + done, text.size() - done);
    if (got < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "read", path);
    }
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  text.resize(done);
  return text;
}

}  // namespace nibble
