// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/source_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/artifact/sha256.h"
#include "engine/base/posix_status.h"
#include "services/quantization/status_macros.h"

namespace nibble {
namespace {

constexpr size_t kMaxFiles = 1000;

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// O_NONBLOCK: opening a FIFO must not wait for its writer; it has no effect on files.
int OpenBeneath(int root, const std::string& path) {
  open_how how = {};
  how.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  return static_cast<int>(::syscall(SYS_openat2, root, path.c_str(), &how, sizeof(how)));
}

absl::Status OpenError(int error, const std::string& path) {
  if (error == EXDEV || error == ELOOP) {
    return absl::InvalidArgumentError(
        absl::StrCat("path '", path, "' leads out of the model root, or its links go in a circle"));
  }
  if (error == ENOENT || error == ENOTDIR) {
    return absl::NotFoundError(absl::StrCat("path '", path, "': not found beneath the model root"));
  }
  return ErrnoStatus(error, "open", path);
}

}  // namespace

std::string FilesDigest(std::vector<FileRecord> files) {
  std::sort(files.begin(), files.end(),
            [](const FileRecord& a, const FileRecord& b) { return a.name < b.name; });
  Sha256 hash;
  for (const FileRecord& file : files)
    hash.Update(absl::StrCat(file.sha256, "  ", file.name, "\n"));
  return hash.FinishHex();
}

absl::Status CheckRelativePath(const std::string& field, const std::string& path) {
  const std::vector<std::string> parts = absl::StrSplit(path, '/');
  const bool plain = std::none_of(parts.begin(), parts.end(), [](const std::string& part) {
    return part.empty() || part == "." || part == "..";
  });
  if (plain && path.size() <= 4096 && path.find('\0') == std::string::npos) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": '", path.substr(0, 200),
                   "' must be a relative path of 1..4096 bytes beneath the model root, without "
                   "'.', '..' and empty components"));
}

absl::StatusOr<OpenSource> OpenSource::Open(const std::string& root, const std::string& path) {
  if (root.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("path '", path, "': this server has no model root (--model-root)"));
  }
  NIBBLE_RETURN_IF_ERROR(CheckRelativePath("path", path));
  const Descriptor root_fd(::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (root_fd.get() < 0) return ErrnoStatus(errno, "open model root", root);

  Descriptor fd(OpenBeneath(root_fd.get(), path));
  if (fd.get() < 0) return OpenError(errno, path);
  struct stat info = {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "stat", path);

  OpenSource source;
  if (S_ISREG(info.st_mode)) {
    const size_t slash = path.rfind('/');
    const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
    source.files_.push_back({name, fd.Release(), static_cast<int64_t>(info.st_size)});
    return source;
  }
  if (!S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("path '", path, "' is neither a file nor a directory"));
  }
  source.is_directory_ = true;
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::fdopendir(fd.get()), ::closedir);
  if (directory == nullptr) return ErrnoStatus(errno, "list", path);
  fd.Release();  // now the stream's
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(directory.get())) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
    if (names.size() > kMaxFiles) {
      return absl::InvalidArgumentError(
          absl::StrCat("path '", path, "' has more than ", kMaxFiles, " entries"));
    }
  }
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    NIBBLE_RETURN_IF_ERROR(source.Add(root_fd.get(), absl::StrCat(path, "/", name), name));
  }
  return source;
}

absl::Status OpenSource::Add(int root_fd, const std::string& path, const std::string& name) {
  Descriptor fd(OpenBeneath(root_fd, path));
  if (fd.get() < 0) return OpenError(errno, path);
  struct stat info = {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "stat", path);
  if (S_ISDIR(info.st_mode)) return absl::OkStatus();
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("path '", path, "' is a special file"));
  }
  files_.push_back({name, fd.Release(), static_cast<int64_t>(info.st_size)});
  return absl::OkStatus();
}

OpenSource::OpenSource(OpenSource&& other) noexcept
    : is_directory_(other.is_directory_), files_(std::exchange(other.files_, {})) {}

OpenSource::~OpenSource() {
  for (const File& file : files_) ::close(file.fd);
}

int64_t OpenSource::bytes() const {
  int64_t sum = 0;
  for (const File& file : files_) sum += file.bytes;
  return sum;
}

std::string OpenSource::ProcPath(const std::string& name) const {
  for (const File& file : files_) {
    if (file.name == name) return absl::StrCat("/proc/self/fd/", file.fd);
  }
  return "";
}

absl::StatusOr<std::string> OpenSource::LinkInto(const std::string& directory) const {
  for (const File& file : files_) {
    const std::string link = absl::StrCat(directory, "/", file.name);
    if (::symlink(absl::StrCat("/proc/self/fd/", file.fd).c_str(), link.c_str()) != 0) {
      return ErrnoStatus(errno, "link", link);
    }
  }
  return is_directory_ ? directory : absl::StrCat(directory, "/", files_.front().name);
}

}  // namespace nibble
