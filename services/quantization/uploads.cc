// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/uploads.h"

#include <sys/random.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/artifact/sha256.h"
#include "kernels/check.h"
#include "services/quantization/source_files.h"
#include "services/quantization/status_macros.h"

namespace nibble {
namespace {

constexpr size_t kMaxFileName = 255;
constexpr int64_t kMaxFileBytes = int64_t{1} << 50;

bool IsSha256(const std::string& text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

absl::Status CheckFiles(const UploadRecord& record, const UploadLimits& limits) {
  const bool model = record.kind == ResourceKind::kModel;
  const int32_t most = model ? limits.max_files : 1;
  if (record.files.empty() || record.files.size() > static_cast<size_t>(most)) {
    return absl::InvalidArgumentError(absl::StrCat("files: ", record.files.size(), " entries; a ",
                                                   model ? "model" : "calibration set", " has 1..",
                                                   most));
  }
  std::set<std::string> names;
  int64_t total = 0;
  bool is_model = false;
  for (size_t i = 0; i < record.files.size(); ++i) {
    const FileRecord& file = record.files[i];
    const std::string field = absl::StrCat("files[", i, "]");
    NIBBLE_RETURN_IF_ERROR(CheckFileName(absl::StrCat(field, ".name"), file.name));
    if (!names.insert(file.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ".name: '", file.name, "' is there twice"));
    }
    if (file.bytes < 0 || file.bytes > kMaxFileBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ".size_bytes: ", file.bytes, " is not within 0..", kMaxFileBytes));
    }
    if (!IsSha256(file.sha256)) {
      return absl::InvalidArgumentError(absl::StrCat(field, ".sha256: '",
                                                     absl::CHexEscape(file.sha256.substr(0, 80)),
                                                     "' must be 64 characters of 0-9 and a-f"));
    }
    total += file.bytes;
    if (total > limits.max_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat("files: more than ", limits.max_bytes, " bytes, the most of one upload"));
    }
    is_model = is_model || file.name == "config.json" || absl::EndsWith(file.name, ".gguf");
  }
  if (model && !is_model) {
    return absl::InvalidArgumentError(
        "files: neither config.json nor a .gguf file is among them, so this is not a model");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckFileName(const std::string& field, const std::string& name) {
  const auto allowed = [](unsigned char c) {
    return absl::ascii_isalnum(c) ||
           std::string_view("._-+=@, ").find(static_cast<char>(c)) != std::string_view::npos;
  };
  if (!name.empty() && name.size() <= kMaxFileName && name[0] != '.' && name[0] != ' ' &&
      std::all_of(name.begin(), name.end(), allowed)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      field, ": \"", absl::CHexEscape(name.substr(0, kMaxFileName)),
      "\" must be 1..255 characters of a-z, A-Z, 0-9, '.', '_', '-', '+', '=', '@', ',' and space, "
      "not beginning with '.' or a space"));
}

std::string RandomId() {
  unsigned char bytes[16];
  NIBBLE_CHECK(::getrandom(bytes, sizeof(bytes), 0) == sizeof(bytes));
  std::string id;
  for (const unsigned char byte : bytes) id += "abcdefghijklmnopqrstuvwxyz234567"[byte % 32];
  return id;
}

// ---- UploadWriter ----

UploadWriter::UploadWriter(Uploads& uploads, UploadRecord record)
    : uploads_(uploads), record_(std::move(record)) {}

UploadWriter::~UploadWriter() { Close().IgnoreError(); }

absl::Status UploadWriter::Write(const std::string& file, int64_t offset, std::string_view data) {
  if (data.size() > uploads_.limits_.max_chunk) {
    return absl::InvalidArgumentError(absl::StrCat("data: ", data.size(), " bytes; at most ",
                                                   uploads_.limits_.max_chunk,
                                                   " are allowed in a message"));
  }
  if (current_ == nullptr || current_->name != file) {
    NIBBLE_RETURN_IF_ERROR(Sync());
    const auto found = std::find_if(record_.files.begin(), record_.files.end(),
                                    [&](const FileRecord& f) { return f.name == file; });
    if (found == record_.files.end()) {
      return absl::InvalidArgumentError(absl::StrCat("file: '",
                                                     absl::CHexEscape(file.substr(0, 255)),
                                                     "' is not a file of uploads/", record_.id));
    }
    NIBBLE_RETURN_IF_ERROR(Open(*found));
    current_ = &*found;
  }
  if (offset != written_) {
    return absl::OutOfRangeError(absl::StrCat("offset: ", offset, " of file '", file,
                                              "' is not where it goes on; expected offset ",
                                              written_));
  }
  if (static_cast<int64_t>(data.size()) > current_->bytes - written_) {
    return absl::InvalidArgumentError(absl::StrCat("data: ", data.size(), " bytes at offset ",
                                                   offset, " go beyond file '", file, "' of ",
                                                   current_->bytes, " bytes"));
  }
  NIBBLE_RETURN_IF_ERROR(file_->Append(data));
  written_ += static_cast<int64_t>(data.size());
  uploads_.on_bytes_(data.size());
  if (written_ - current_->synced_bytes >= uploads_.limits_.sync_every) return Sync();
  return absl::OkStatus();
}

absl::Status UploadWriter::Open(const FileRecord& file) {
  current_ = nullptr;
  const std::string path = absl::StrCat(uploads_.layout_.Source(record_.id), "/", file.name);
  absl::StatusOr<std::unique_ptr<WritableFile>> opened =
      uploads_.fs_.Continue(path, file.synced_bytes);
  created_ = absl::IsNotFound(opened.status()) && file.synced_bytes == 0;
  if (created_) opened = uploads_.fs_.Create(path);
  if (!opened.ok()) return opened.status();
  file_ = *std::move(opened);
  written_ = file.synced_bytes;
  return absl::OkStatus();
}

absl::Status UploadWriter::Sync() {
  if (current_ == nullptr || written_ == current_->synced_bytes) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(file_->Sync());
  if (created_) {
    NIBBLE_RETURN_IF_ERROR(uploads_.fs_.SyncDirectory(uploads_.layout_.Source(record_.id)));
    created_ = false;
  }
  NIBBLE_RETURN_IF_ERROR(uploads_.store_.RecordSynced(
      record_.id, current_->name, written_, uploads_.clock_.Now() + uploads_.limits_.expiry));
  current_->synced_bytes = written_;
  return absl::OkStatus();
}

absl::Status UploadWriter::Close() {
  if (closed_) return absl::OkStatus();
  closed_ = true;
  absl::Status status = Sync();
  file_.reset();
  const std::lock_guard lock(uploads_.mutex_);
  uploads_.taken_.erase(record_.id);
  return status;
}

// ---- Uploads ----

class Uploads::Claim {
 public:
  Claim(Uploads& uploads, std::string id) : uploads_(uploads), id_(std::move(id)) {}
  ~Claim() {
    if (!held_) return;
    const std::lock_guard lock(uploads_.mutex_);
    uploads_.taken_.erase(id_);
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;
  // A writer goes on holding the upload.
  void HandOver() { held_ = false; }

 private:
  Uploads& uploads_;
  const std::string id_;
  bool held_ = true;
};

Uploads::Uploads(ResourceStore& store, FileSystem& fs, DataLayout layout, UploadLimits limits,
                 const Clock& clock, std::function<void(size_t)> on_bytes)
    : store_(store),
      fs_(fs),
      layout_(std::move(layout)),
      limits_(limits),
      clock_(clock),
      on_bytes_(std::move(on_bytes)) {}

absl::StatusOr<UploadRecord> Uploads::Create(UploadRecord record) {
  NIBBLE_RETURN_IF_ERROR(CheckFiles(record, limits_));
  int64_t bytes = 0;
  for (const FileRecord& file : record.files) bytes += file.bytes;
  NIBBLE_ASSIGN_OR_RETURN(const int64_t free, fs_.FreeBytes(layout_.root));
  if (bytes > free - limits_.keep_free) {
    return absl::ResourceExhaustedError(absl::StrCat("files: ", bytes, " bytes; the disk has ",
                                                     free, " free, of which ", limits_.keep_free,
                                                     " are kept"));
  }
  record.id = RandomId();
  record.state = UploadState::kActive;
  record.create_time = clock_.Now();
  record.expire_time = record.create_time + limits_.expiry;
  for (FileRecord& file : record.files) file.synced_bytes = 0;
  NIBBLE_RETURN_IF_ERROR(store_.CreateUpload(record, limits_.quota));
  absl::Status made = fs_.CreateDirectory(layout_.Source(record.id));
  if (made.ok()) made = fs_.SyncDirectory(layout_.Sources());
  if (!made.ok()) {
    store_.DeleteUpload(record.id).IgnoreError();
    return made;
  }
  return record;
}

absl::StatusOr<std::unique_ptr<Uploads::Claim>> Uploads::Take(const std::string& id) {
  const std::lock_guard lock(mutex_);
  if (!taken_.insert(id).second) {
    return absl::AbortedError(absl::StrCat("uploads/", id, " is being written by somebody else"));
  }
  return std::make_unique<Claim>(*this, id);
}

absl::StatusOr<std::unique_ptr<UploadWriter>> Uploads::OpenWriter(const std::string& id) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Claim> claim, Take(id));
  NIBBLE_ASSIGN_OR_RETURN(UploadRecord record, store_.GetUpload(id));
  if (record.state != UploadState::kActive) {
    return absl::FailedPreconditionError(
        absl::StrCat("uploads/", id, " is finished; it became ", record.resource));
  }
  std::unique_ptr<UploadWriter> writer(new UploadWriter(*this, std::move(record)));
  claim->HandOver();
  return writer;
}

absl::StatusOr<ResourceRecord> Uploads::Finish(const std::string& id) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Claim> claim, Take(id));
  NIBBLE_ASSIGN_OR_RETURN(const UploadRecord upload, store_.GetUpload(id));
  if (upload.state == UploadState::kFinished) return store_.GetResource(upload.resource);
  NIBBLE_RETURN_IF_ERROR(Verify(upload));
  // A text is known by its own digest, a model by those of its files.
  return store_.FinishUpload(id, upload.kind == ResourceKind::kModel ? FilesDigest(upload.files)
                                                                     : upload.files.front().sha256);
}

absl::Status Uploads::Verify(const UploadRecord& upload) {
  const std::string directory = layout_.Source(upload.id);
  for (const FileRecord& file : upload.files) {
    const std::string path = absl::StrCat(directory, "/", file.name);
    if (file.synced_bytes != file.bytes) {
      return absl::FailedPreconditionError(absl::StrCat("uploads/", upload.id, ": file '",
                                                        file.name, "' has ", file.synced_bytes,
                                                        " of ", file.bytes, " bytes"));
    }
    if (file.bytes == 0) {  // nobody had to write it
      absl::StatusOr<std::unique_ptr<WritableFile>> empty = fs_.Create(path);
      if (!empty.ok() && !absl::IsAlreadyExists(empty.status())) return empty.status();
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::string sha256, Sha256OfFile(path));
    if (sha256 != file.sha256) {
      NIBBLE_RETURN_IF_ERROR(
          store_.RecordSynced(upload.id, file.name, 0, clock_.Now() + limits_.expiry));
      return absl::InvalidArgumentError(
          absl::StrCat("files: the bytes of '", file.name, "' have sha256 ", sha256,
                       ", announced was ", file.sha256, "; send the file again from offset 0"));
    }
  }
  return fs_.SyncDirectory(directory);
}

absl::Status Uploads::Delete(const std::string& id) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Claim> claim, Take(id));
  NIBBLE_ASSIGN_OR_RETURN(const UploadRecord upload, store_.GetUpload(id));
  NIBBLE_RETURN_IF_ERROR(store_.DeleteUpload(id));
  if (upload.state == UploadState::kFinished) return absl::OkStatus();  // the resource's files now
  return fs_.RemoveTree(layout_.Source(id));
}

}  // namespace nibble
