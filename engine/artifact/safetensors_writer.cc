// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/safetensors_writer.h"

#include <algorithm>
#include <utility>

#include "engine/base/cat.h"

namespace nibble {
namespace {

constexpr size_t kPiece = size_t{1} << 20;

std::string LastComponent(const std::string& path) {
  return path.substr(path.find_last_of('/') + 1);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    FileSystem& fs, std::string path, std::vector<SafetensorsEntry> tensors,
    const std::map<std::string, std::string>& metadata) {
  absl::StatusOr<std::string> header = BuildSafetensorsHeader(tensors, metadata);
  if (!header.ok()) return header.status();
  absl::StatusOr<std::unique_ptr<WritableFile>> file = fs.Create(path);
  if (!file.ok()) return file.status();
  std::unique_ptr<SafetensorsWriter> writer(
      new SafetensorsWriter(std::move(path), std::move(tensors), *std::move(file)));
  if (absl::Status status = writer->Write(*header); !status.ok()) return status;
  writer->SkipFull();
  return writer;
}

absl::Status SafetensorsWriter::Append(std::string_view name, std::string_view bytes) {
  if (bytes.empty()) return absl::OkStatus();
  if (next_ >= tensors_.size() || tensors_[next_].name != name) {
    return absl::InvalidArgumentError(
        Cat(path_, ": tensor ", name, " comes out of order, expected is ",
            next_ < tensors_.size() ? tensors_[next_].name : std::string("the end")));
  }
  const int64_t size = tensors_[next_].end - tensors_[next_].begin;
  if (static_cast<int64_t>(bytes.size()) > size - written_) {
    return absl::InvalidArgumentError(Cat(path_, ": tensor ", name, " has ", size, " bytes, got ",
                                          written_ + static_cast<int64_t>(bytes.size())));
  }
  if (absl::Status status = Write(bytes); !status.ok()) return status;
  written_ += static_cast<int64_t>(bytes.size());
  SkipFull();
  return absl::OkStatus();
}

absl::StatusOr<WrittenFile> SafetensorsWriter::Finish() {
  if (!complete()) {
    return absl::FailedPreconditionError(
        Cat(path_, ": tensor ", tensors_[next_].name, " is incomplete"));
  }
  if (absl::Status status = file_->Sync(); !status.ok()) return status;
  if (absl::Status status = file_->Close(); !status.ok()) return status;
  return WrittenFile{LastComponent(path_), file_bytes_, hash_.FinishHex()};
}

// In pieces that are still in the cache when they are hashed.
absl::Status SafetensorsWriter::Write(std::string_view bytes) {
  while (!bytes.empty()) {
    const std::string_view piece = bytes.substr(0, kPiece);
    if (absl::Status status = file_->Append(piece); !status.ok()) return status;
    hash_.Update(piece);
    file_bytes_ += static_cast<int64_t>(piece.size());
    bytes.remove_prefix(piece.size());
  }
  return absl::OkStatus();
}

void SafetensorsWriter::SkipFull() {
  while (next_ < tensors_.size() && written_ == tensors_[next_].end - tensors_[next_].begin) {
    ++next_;
    written_ = 0;
  }
}

absl::StatusOr<WrittenFile> WriteWholeFile(FileSystem& fs, const std::string& path,
                                           std::string_view bytes) {
  absl::StatusOr<std::unique_ptr<WritableFile>> file = fs.Create(path);
  if (!file.ok()) return file.status();
  if (absl::Status status = (*file)->Append(bytes); !status.ok()) return status;
  if (absl::Status status = (*file)->Sync(); !status.ok()) return status;
  if (absl::Status status = (*file)->Close(); !status.ok()) return status;
  return WrittenFile{LastComponent(path), static_cast<int64_t>(bytes.size()), Sha256Hex(bytes)};
}

}  // namespace nibble
