// SPDX-License-Identifier: Apache-2.0
#include "tests/support/fault_fs.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "engine/base/cat.h"
#include "kernels/check.h"

namespace nibble {
namespace {

std::string Normal(const std::string& path) {
  std::string text = std::filesystem::path(path).lexically_normal().string();
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  return text;
}

std::string ParentOf(const std::string& path) {
  return std::filesystem::path(path).parent_path().string();
}

// Whether `path` is `prefix` or lies beneath it; then the path with the prefix replaced.
bool ReplacePrefix(std::string& path, const std::string& prefix, const std::string& with) {
  if (path != prefix && !path.starts_with(prefix + "/")) return false;
  path = with + path.substr(prefix.size());
  return true;
}

}  // namespace

// A file of FaultFileSystem; follows its path through renames of its directories.
class FaultFile final : public WritableFile {
 public:
  FaultFile(FaultFileSystem& fs, std::string path, std::unique_ptr<WritableFile> file)
      : fs_(fs), path_(std::move(path)), file_(std::move(file)), crashes_(fs.crashes_) {
    fs_.open_.push_back(this);  // Made under the lock.
  }
  ~FaultFile() override {
    const std::lock_guard lock(fs_.mutex_);
    std::erase(fs_.open_, this);
  }

  absl::Status Append(std::string_view bytes) override {
    const std::lock_guard lock(fs_.mutex_);
    if (absl::Status status = Check("append"); !status.ok()) {
      if (crashes_ == fs_.crashes_) (void)file_->Append(bytes.substr(0, bytes.size() / 2));
      return status;
    }
    return file_->Append(bytes);
  }

  absl::Status Sync() override {
    const std::lock_guard lock(fs_.mutex_);
    if (absl::Status status = Check("sync"); !status.ok()) return status;
    absl::StatusOr<int64_t> size = PosixFileSystem().Size(path_);
    if (!size.ok()) return size.status();
    fs_.synced_bytes_[path_] = *size;
    return absl::OkStatus();
  }

  absl::Status Close() override {
    const std::lock_guard lock(fs_.mutex_);
    if (absl::Status status = Check("close"); !status.ok()) return status;
    return file_->Close();
  }

 private:
  friend class FaultFileSystem;

  absl::Status Check(std::string_view what) {
    if (crashes_ != fs_.crashes_) {
      return absl::InternalError(Cat(path_, ": was open when the machine crashed"));
    }
    return fs_.Count(what, path_);
  }

  FaultFileSystem& fs_;
  std::string path_;
  std::unique_ptr<WritableFile> file_;
  const int64_t crashes_;
};

FaultFileSystem::FaultFileSystem(std::string root)
    : root_(Normal(root)), removed_(root_ + ".removed") {
  (void)PosixFileSystem().RemoveTree(removed_);
  NIBBLE_CHECK(PosixFileSystem().CreateDirectory(removed_).ok());
}

FaultFileSystem::~FaultFileSystem() { (void)PosixFileSystem().RemoveTree(removed_); }

int64_t FaultFileSystem::operations() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(log_.size());
}

std::vector<std::string> FaultFileSystem::log() const {
  const std::lock_guard lock(mutex_);
  return log_;
}

void FaultFileSystem::Fail(int64_t first, absl::Status status, int64_t count) {
  const std::lock_guard lock(mutex_);
  fail_first_ = first;
  fail_count_ = count;
  failure_ = std::move(status);
}

void FaultFileSystem::StopFailing() {
  const std::lock_guard lock(mutex_);
  fail_count_ = 0;
}

absl::Status FaultFileSystem::Count(std::string_view what, const std::string& path) {
  const auto number = static_cast<int64_t>(log_.size());
  log_.push_back(Cat(what, " ", path));
  if (number >= fail_first_ && number - fail_first_ < fail_count_) return failure_;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<WritableFile>> FaultFileSystem::Create(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const std::string path = Normal(name);
  if (absl::Status status = Count("create", path); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<WritableFile>> file = PosixFileSystem().Create(path);
  if (!file.ok()) return file.status();
  pending_.push_back({Pending::Kind::kCreate, path, ""});
  synced_bytes_[path] = 0;
  return std::make_unique<FaultFile>(*this, path, *std::move(file));
}

absl::StatusOr<std::unique_ptr<WritableFile>> FaultFileSystem::Continue(const std::string& name,
                                                                        int64_t size) {
  const std::lock_guard lock(mutex_);
  const std::string path = Normal(name);
  if (absl::Status status = Count("continue", path); !status.ok()) return status;
  absl::StatusOr<int64_t> before = PosixFileSystem().Size(path);
  if (!before.ok()) return before.status();
  absl::StatusOr<std::unique_ptr<WritableFile>> file = PosixFileSystem().Continue(path, size);
  if (!file.ok()) return file.status();
  // A file that was there before this file system counts as synced.
  const auto [entry, added] = synced_bytes_.emplace(path, *before);
  entry->second = std::min(entry->second, size);
  return std::make_unique<FaultFile>(*this, path, *std::move(file));
}

absl::Status FaultFileSystem::CreateDirectory(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const std::string path = Normal(name);
  if (absl::Status status = Count("mkdir", path); !status.ok()) return status;
  if (absl::Status status = PosixFileSystem().CreateDirectory(path); !status.ok()) return status;
  pending_.push_back({Pending::Kind::kCreate, path, ""});
  return absl::OkStatus();
}

absl::Status FaultFileSystem::SyncDirectory(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const std::string path = Normal(name);
  if (absl::Status status = Count("syncdir", path); !status.ok()) return status;
  if (absl::StatusOr<std::vector<std::string>> names = PosixFileSystem().List(path); !names.ok()) {
    return names.status();
  }
  std::erase_if(pending_, [&path](const Pending& pending) {
    if (ParentOf(pending.path) != path) return false;
    if (pending.kind == Pending::Kind::kRemove) (void)PosixFileSystem().RemoveTree(pending.other);
    return true;
  });
  return absl::OkStatus();
}

absl::Status FaultFileSystem::RenameNoReplace(const std::string& from_name,
                                              const std::string& to_name) {
  const std::lock_guard lock(mutex_);
  const std::string from = Normal(from_name);
  const std::string to = Normal(to_name);
  if (absl::Status status = Count("rename", Cat(from, " ", to)); !status.ok()) return status;
  if (absl::Status status = PosixFileSystem().RenameNoReplace(from, to); !status.ok()) {
    return status;
  }
  MovePrefix(from, to, pending_.size());
  pending_.push_back({Pending::Kind::kRename, to, from});
  return absl::OkStatus();
}

absl::Status FaultFileSystem::Remove(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const std::string path = Normal(name);
  if (absl::Status status = Count("remove", path); !status.ok()) return status;
  std::error_code error;
  if (std::filesystem::is_directory(path, error) && !std::filesystem::is_empty(path, error)) {
    return absl::AlreadyExistsError(Cat(path, ": directory is not empty"));
  }
  return RemoveLocked("remove", path);
}

absl::Status FaultFileSystem::RemoveTree(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const std::string path = Normal(name);
  if (absl::Status status = Count("removetree", path); !status.ok()) return status;
  absl::Status status = RemoveLocked("removetree", path);
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

// Puts the thing aside, so that a crash can bring it back.
absl::Status FaultFileSystem::RemoveLocked(std::string_view what, const std::string& path) {
  const std::string kept = Cat(removed_, "/", next_removed_++);
  if (absl::Status status = PosixFileSystem().RenameNoReplace(path, kept); !status.ok()) {
    return absl::Status(status.code(), Cat(what, ": ", status.message()));
  }
  MovePrefix(path, kept, pending_.size());
  pending_.push_back({Pending::Kind::kRemove, path, kept});
  return absl::OkStatus();
}

void FaultFileSystem::MovePrefix(const std::string& from, const std::string& to,
                                 size_t pending_count) {
  for (size_t i = 0; i < pending_count; ++i) {
    // What a removal keeps is not at its path any more.
    if (pending_[i].kind != Pending::Kind::kRemove) ReplacePrefix(pending_[i].path, from, to);
  }
  for (FaultFile* file : open_) ReplacePrefix(file->path_, from, to);
  std::map<std::string, int64_t> moved;
  for (const auto& [path, bytes] : synced_bytes_) {
    std::string now = path;
    ReplacePrefix(now, from, to);
    moved[now] = bytes;
  }
  synced_bytes_ = std::move(moved);
}

void FaultFileSystem::Crash() {
  const std::lock_guard lock(mutex_);
  ++crashes_;
  fail_count_ = 0;
  while (!pending_.empty()) {
    const Pending pending = pending_.back();
    pending_.pop_back();
    switch (pending.kind) {
      case Pending::Kind::kCreate:
        (void)PosixFileSystem().RemoveTree(pending.path);
        break;
      case Pending::Kind::kRename:
      case Pending::Kind::kRemove: {
        const bool removal = pending.kind == Pending::Kind::kRemove;
        const std::string& from = removal ? pending.other : pending.path;
        const std::string& to = removal ? pending.path : pending.other;
        (void)PosixFileSystem().RenameNoReplace(from, to);
        MovePrefix(from, to, pending_.size());
        break;
      }
    }
  }
  for (const auto& [path, bytes] : synced_bytes_) {
    std::error_code error;
    if (std::filesystem::is_regular_file(path, error)) {
      std::filesystem::resize_file(path, static_cast<uintmax_t>(bytes), error);
    }
  }
  synced_bytes_.clear();
}

absl::StatusOr<std::vector<std::string>> FaultFileSystem::List(const std::string& path) {
  return PosixFileSystem().List(path);
}
absl::StatusOr<int64_t> FaultFileSystem::Size(const std::string& path) {
  return PosixFileSystem().Size(path);
}
absl::StatusOr<int64_t> FaultFileSystem::FreeBytes(const std::string& path) {
  return PosixFileSystem().FreeBytes(path);
}

}  // namespace nibble
