// SPDX-License-Identifier: Apache-2.0
#include "services/generation/source_path.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>

#include "services/common/text.h"

namespace nibble {
namespace {

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

absl::StatusOr<std::string> ResolveBeneath(const std::string& root, const std::string& path) {
  if (root.empty()) {
    return absl::PermissionDeniedError(
        Concat("source is \"", path, "\", a path, and the server has no --model-root"));
  }
  const Fd base(open(root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (base.get() < 0) {
    return absl::NotFoundError(Concat("--model-root ", root, ": ", std::strerror(errno)));
  }
  open_how how{};
  how.flags = O_PATH | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  const Fd file(
      static_cast<int>(syscall(SYS_openat2, base.get(), path.c_str(), &how, sizeof(how))));
  if (file.get() < 0) {
    if (errno == ENOENT || errno == ENOTDIR) {
      return absl::NotFoundError(
          Concat("source \"", path, "\" does not exist beneath the model root"));
    }
    if (errno == EXDEV || errno == ELOOP) {
      return absl::InvalidArgumentError(
          Concat("source \"", path, "\" leads out of the model root"));
    }
    return absl::InvalidArgumentError(Concat("source \"", path, "\": ", std::strerror(errno)));
  }
  std::array<char, PATH_MAX> real;
  const std::string link = Concat("/proc/self/fd/", file.get());
  const ssize_t length = readlink(link.c_str(), real.data(), real.size());
  if (length <= 0 || static_cast<size_t>(length) == real.size()) {
    return absl::InternalError(Concat("source \"", path, "\": ", std::strerror(errno)));
  }
  return std::string(real.data(), static_cast<size_t>(length));
}

}  // namespace nibble
