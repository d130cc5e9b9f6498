// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/sha256.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/escaping.h"
#include "engine/base/posix_status.h"
#include "engine/base/read_file.h"
#include "kernels/check.h"

namespace nibble {

struct Sha256::Impl {
  Impl() : context(EVP_MD_CTX_new()) {
    NIBBLE_CHECK(context != nullptr && EVP_DigestInit_ex(context, EVP_sha256(), nullptr) == 1);
  }
  ~Impl() { EVP_MD_CTX_free(context); }
  EVP_MD_CTX* context;
};

Sha256::Sha256() : impl_(std::make_unique<Impl>()) {}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::Update(std::string_view bytes) {
  NIBBLE_CHECK(EVP_DigestUpdate(impl_->context, bytes.data(), bytes.size()) == 1);
}

std::string Sha256::FinishHex() {
  std::array<unsigned char, 32> digest{};
  NIBBLE_CHECK(EVP_DigestFinal_ex(impl_->context, digest.data(), nullptr) == 1);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

std::string Sha256Hex(std::string_view bytes) {
  Sha256 hash;
  hash.Update(bytes);
  return hash.FinishHex();
}

absl::StatusOr<std::string> Sha256OfFile(const std::string& path,
                                         const std::function<absl::Status()>& keep_going) {
  absl::StatusOr<OpenedFile> file = OpenRegularFile(path);
  if (!file.ok()) return file.status();
  const int fd = file->fd;
  const auto close_file = absl::MakeCleanup([fd] { ::close(fd); });
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  Sha256 hash;
  std::string piece(size_t{1} << 20, '\0');
  while (true) {
    if (keep_going) {
      if (absl::Status status = keep_going(); !status.ok()) return status;
    }
    const ssize_t got = ::read(fd, piece.data(), piece.size());
    if (got < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "read", path);
    }
    if (got == 0) return hash.FinishHex();
    hash.Update(std::string_view(piece).substr(0, static_cast<size_t>(got)));
  }
}

}  // namespace nibble
