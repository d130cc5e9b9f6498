// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/posix_status.h"
#include "services/common/grpc_status.h"
#include "services/quantization/status_macros.h"
#include "services/quantization/streams.h"

namespace nibble {
namespace {

constexpr size_t kChunk = size_t{1} << 20;

// Reads a chunk on the pool, sends it, reads the next one.
class DownloadStream : public grpc::ServerWriteReactor<v1::DownloadArtifactResponse> {
 public:
  DownloadStream(StreamContext context, const Caller& caller,
                 const v1::DownloadArtifactRequest& request)
      : context_(context), caller_(caller), request_(request) {
    context_.pool.Run([this] { Next(); });
  }
  ~DownloadStream() override {
    if (fd_ >= 0) ::close(fd_);
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      Finish(ToGrpc(absl::CancelledError("the reader is gone")));
      return;
    }
    context_.pool.Run([this] { Next(); });
  }
  void OnDone() override { delete this; }

 private:
  void Next() {
    const absl::StatusOr<bool> more = Read();
    if (more.ok() && *more) {
      StartWrite(&message_);
    } else {
      Finish(ToGrpc(more.status()));
    }
  }

  absl::Status Open() {
    NIBBLE_ASSIGN_OR_RETURN(const ArtifactRecord record,
                            context_.api.FindArtifact(caller_, request_.name()));
    const QuantizationContext& c = context_.api.context();
    NIBBLE_ASSIGN_OR_RETURN(artifact_, ResolveArtifact(c.jobs, c.layout, record.id));
    NIBBLE_ASSIGN_OR_RETURN(files_, c.fs.List(artifact_.directory));
    if (request_.file().empty()) {
      if (request_.offset() != 0) {
        return absl::InvalidArgumentError("offset: needs a file");
      }
      return absl::OkStatus();
    }
    // Only names that the directory lists: no path can get out of it.
    if (std::find(files_.begin(), files_.end(), request_.file()) == files_.end()) {
      return absl::NotFoundError(
          absl::StrCat("file: '", request_.file(), "' is not a file of ", request_.name()));
    }
    files_ = {request_.file()};
    return absl::OkStatus();
  }

  // Fills message_; false after the last file.
  absl::StatusOr<bool> Read() {
    if (artifact_.directory.empty()) NIBBLE_RETURN_IF_ERROR(Open());
    message_.clear_data();
    if (fd_ < 0) {
      if (index_ == files_.size()) return false;
      const std::string path = absl::StrCat(artifact_.directory, "/", files_[index_]);
      NIBBLE_ASSIGN_OR_RETURN(size_, context_.api.context().fs.Size(path));
      offset_ = request_.offset();
      if (offset_ < 0 || offset_ > size_) {
        return absl::OutOfRangeError(
            absl::StrCat("offset: ", offset_, " is not within 0..", size_));
      }
      fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
      if (fd_ < 0) return ErrnoStatus(errno, "open", path);
    }
    std::string& data = *message_.mutable_data();
    data.resize(std::min(kChunk, static_cast<size_t>(size_ - offset_)));
    size_t got = 0;
    while (got < data.size()) {
      const ssize_t n =
          ::pread(fd_, data.data() + got, data.size() - got, offset_ + static_cast<int64_t>(got));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return ErrnoStatus(n < 0 ? errno : EIO, "read", files_[index_]);
      got += static_cast<size_t>(n);
    }
    message_.set_file(files_[index_]);
    message_.set_offset(offset_);
    message_.set_size_bytes(size_);
    offset_ += static_cast<int64_t>(got);
    if (offset_ == size_) {
      ::close(std::exchange(fd_, -1));
      ++index_;
    }
    return true;
  }

  const StreamContext context_;
  const Caller caller_;
  const v1::DownloadArtifactRequest request_;
  LocalArtifact artifact_;
  std::vector<std::string> files_;
  size_t index_ = 0;
  int fd_ = -1;
  int64_t size_ = 0;
  int64_t offset_ = 0;
  v1::DownloadArtifactResponse message_;
};

}  // namespace

grpc::ServerWriteReactor<v1::DownloadArtifactResponse>* StartDownload(
    StreamContext context, const Caller& caller, const v1::DownloadArtifactRequest& request) {
  return new DownloadStream(context, caller, request);
}

}  // namespace nibble
