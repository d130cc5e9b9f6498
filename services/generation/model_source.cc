// SPDX-License-Identifier: Apache-2.0
#include "services/generation/model_source.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/artifact/file_system.h"
#include "engine/artifact/source_files.h"
#include "engine/base/cat.h"
#include "services/common/log.h"

namespace nibble {
namespace {

constexpr int64_t kSpareDisk = 64 << 20;  // stays free after a copy

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

absl::StatusOr<Fd> OpenRoot(const std::string& root) {
  Fd fd(open(root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() >= 0) return fd;
  return absl::NotFoundError(Cat("--model-root ", root, ": ", std::strerror(errno)));
}

absl::StatusOr<Fd> OpenBeneath(const Fd& root, const std::string& path, uint64_t flags) {
  open_how how{};
  how.flags = flags | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  Fd fd(static_cast<int>(syscall(SYS_openat2, root.get(), path.c_str(), &how, sizeof(how))));
  if (fd.get() >= 0) return fd;
  switch (errno) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(
          Cat("source \"", path, "\" does not exist beneath the model root"));
    case EXDEV:
    case ELOOP:
      return absl::InvalidArgumentError(Cat("source \"", path, "\" leads out of the model root"));
    default:
      return absl::InvalidArgumentError(Cat("source \"", path, "\": ", std::strerror(errno)));
  }
}

absl::StatusOr<std::string> RealPath(const Fd& fd) {
  std::array<char, PATH_MAX> real;
  const std::string link = Cat("/proc/self/fd/", fd.get());
  const ssize_t length = readlink(link.c_str(), real.data(), real.size());
  if (length > 0 && static_cast<size_t>(length) < real.size()) {
    return std::string(real.data(), static_cast<size_t>(length));
  }
  return absl::InternalError(Cat(link, ": ", std::strerror(errno)));
}

absl::Status Copy(const Fd& from, const std::string& to) {
  const Fd out(open(to.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (out.get() < 0) return absl::InternalError(Cat(to, ": ", std::strerror(errno)));
  constexpr size_t kPiece = size_t{1} << 30;
  bool shares_blocks = true;  // until the kernel says that these two file systems cannot
  for (;;) {
    const ssize_t copied = shares_blocks
                               ? copy_file_range(from.get(), nullptr, out.get(), nullptr, kPiece, 0)
                               : sendfile(out.get(), from.get(), nullptr, kPiece);
    if (copied == 0) return absl::OkStatus();
    if (copied > 0 || errno == EINTR) continue;
    if (shares_blocks && (errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP)) {
      shares_blocks = false;
      continue;
    }
    if (errno == ENOSPC || errno == EDQUOT) {
      return absl::ResourceExhaustedError(Cat(to, ": ", std::strerror(errno)));
    }
    return absl::InternalError(Cat(to, ": ", std::strerror(errno)));
  }
}

}  // namespace

absl::StatusOr<ModelSource> CopyFromRoot(const std::string& root, const std::string& path,
                                         const std::string& scratch) {
  if (root.empty()) {
    return absl::PermissionDeniedError(
        Cat("source is \"", path, "\", a path, and the server has no --model-root"));
  }
  absl::StatusOr<Fd> base = OpenRoot(root);
  if (!base.ok()) return base.status();
  absl::StatusOr<Fd> found = OpenBeneath(*base, path, O_PATH);
  if (!found.ok()) return found.status();
  absl::StatusOr<std::string> real = RealPath(*found);
  if (!real.ok()) return real.status();
  absl::StatusOr<SourceFiles> files = ListSourceFiles(*real);
  if (!files.ok()) return files.status();

  // Names relative to the root again, so that each file is opened beneath it.
  const bool is_file = files->gguf && files->directory != *real;
  std::vector<Fd> opened;
  int64_t bytes = 0;
  for (const std::string& name : files->names) {
    absl::StatusOr<Fd> file = OpenBeneath(*base, is_file ? path : path + "/" + name, O_RDONLY);
    if (!file.ok()) return file.status();
    struct stat info;
    if (fstat(file->get(), &info) != 0 || !S_ISREG(info.st_mode)) {
      return absl::InvalidArgumentError(Cat("source \"", path, "\": ", name, " is no file"));
    }
    bytes += info.st_size;
    opened.push_back(*std::move(file));
  }

  FileSystem& fs = PosixFileSystem();
  if (absl::Status made = fs.CreateDirectory(scratch); !made.ok() && !absl::IsAlreadyExists(made)) {
    return made;
  }
  absl::StatusOr<int64_t> free = fs.FreeBytes(scratch);
  if (!free.ok()) return free.status();
  if (bytes > *free - kSpareDisk) {
    return absl::ResourceExhaustedError(Cat("source \"", path, "\" has ", bytes,
                                            " bytes; the data directory has room for ", *free));
  }
  std::string directory = scratch + "/XXXXXX";
  if (mkdtemp(directory.data()) == nullptr) {
    return absl::InternalError(Cat(directory, ": ", std::strerror(errno)));
  }
  ModelSource source;
  source.path = is_file ? directory + "/" + files->names[0] : directory;
  source.while_loading = std::shared_ptr<void>(nullptr, [directory](void*) {
    if (absl::Status status = PosixFileSystem().RemoveTree(directory); !status.ok()) {
      LogWarning("scratch_not_removed", {{"error", std::string(status.message())}});
    }
  });
  for (size_t i = 0; i < opened.size(); ++i) {
    const absl::Status copied = Copy(opened[i], directory + "/" + files->names[i]);
    if (!copied.ok()) return copied;
  }
  return source;
}

absl::Status SweepScratch(const std::string& scratch) {
  return PosixFileSystem().RemoveTree(scratch);
}

}  // namespace nibble
