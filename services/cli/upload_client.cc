// SPDX-License-Identifier: Apache-2.0
#include "services/cli/upload_client.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/artifact/sha256.h"
#include "engine/artifact/source_files.h"
#include "services/cli/progress_bar.h"
#include "services/quantization/source_files.h"
#include "services/quantization/status_macros.h"

namespace nibble {
namespace {

using Stub = v1::QuantizationService::Stub;

constexpr size_t kChunk = size_t{512} << 10;
constexpr int kMostRetries = 8;  // in a row, without a byte synced in between

// Empty files are done from the beginning.
double Part(int64_t done, int64_t total) {
  return total == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(total);
}

struct LocalFile {
  std::string path;
  v1::UploadFile description;
};

// Sizes and digests of the files `names` in `directory`.
absl::StatusOr<std::vector<LocalFile>> Describe(const std::string& directory,
                                                const std::vector<std::string>& names,
                                                ProgressBar& bar) {
  std::vector<LocalFile> files;
  int64_t total = 0;
  for (const std::string& name : names) {
    LocalFile& file = files.emplace_back();
    file.path = directory.empty() ? name : absl::StrCat(directory, "/", name);
    std::error_code error;
    const auto bytes = std::filesystem::file_size(file.path, error);
    if (error) return absl::NotFoundError(absl::StrCat(file.path, ": ", error.message()));
    file.description.set_name(std::filesystem::path(name).filename().string());
    file.description.set_size_bytes(static_cast<int64_t>(bytes));
    total += static_cast<int64_t>(bytes);
  }
  int64_t read = 0;
  for (LocalFile& file : files) {
    int64_t of_file = 0;
    const auto keep_going = [&] {
      bar.Show("hashing", Part(read + of_file, total), {}, FormatBytes(total));
      of_file = std::min(of_file + (int64_t{1} << 20), int64_t{file.description.size_bytes()});
      return absl::OkStatus();
    };
    NIBBLE_ASSIGN_OR_RETURN(const std::string sha256, Sha256OfFile(file.path, keep_going));
    file.description.set_sha256(sha256);
    read += file.description.size_bytes();
  }
  return files;
}

bool SameFiles(const v1::Upload& upload, const std::vector<LocalFile>& files) {
  if (upload.files_size() != static_cast<int>(files.size())) return false;
  for (size_t i = 0; i < files.size(); ++i) {
    const v1::UploadFile& theirs = upload.files(static_cast<int>(i));
    const v1::UploadFile& ours = files[i].description;
    if (theirs.name() != ours.name() || theirs.sha256() != ours.sha256()) return false;
  }
  return true;
}

class Sender {
 public:
  Sender(const Client& client, Stub& stub, const std::vector<LocalFile>& files, ProgressBar& bar)
      : client_(client), stub_(stub), files_(files), bar_(bar) {
    for (const LocalFile& file : files) total_ += file.description.size_bytes();
  }

  // Sends what `upload` lacks, however often the connection breaks.
  absl::Status SendAll(v1::Upload upload) {
    int retries = 0;
    for (;;) {
      const int64_t before = Synced(upload);
      const absl::Status status = SendOnce(upload);
      if (status.ok()) return status;
      const bool may_pass = absl::IsUnavailable(status) || absl::IsAborted(status) ||
                            absl::IsOutOfRange(status) || absl::IsResourceExhausted(status);
      if (!may_pass) return status;
      // The server says what arrived; if it cannot be asked either, wait longer.
      std::this_thread::sleep_for(std::chrono::milliseconds(100 << std::min(retries, 6)));
      v1::GetUploadRequest request;
      request.set_name(upload.name());
      grpc::ClientContext context;
      client_.Prepare(&context);
      v1::Upload now;
      if (stub_.GetUpload(&context, request, &now).ok()) upload = std::move(now);
      retries = Synced(upload) > before ? 0 : retries + 1;
      if (retries > kMostRetries) return status;
    }
  }

 private:
  static int64_t Synced(const v1::Upload& upload) {
    int64_t sum = 0;
    for (const v1::UploadFile& file : upload.files()) sum += file.synced_bytes();
    return sum;
  }

  absl::Status SendOnce(const v1::Upload& upload) {
    grpc::ClientContext context;
    client_.Prepare(&context);
    v1::Upload response;
    const auto writer = stub_.WriteUpload(&context, &response);
    const auto begin = std::chrono::steady_clock::now();
    const int64_t already = Synced(upload);
    int64_t sent = already;
    bool any = false;
    absl::Status local;
    v1::WriteUploadRequest message;
    for (size_t i = 0; i < files_.size() && local.ok(); ++i) {
      int64_t offset = upload.files(static_cast<int>(i)).synced_bytes();
      const int64_t size = files_[i].description.size_bytes();
      std::ifstream file(files_[i].path, std::ios::binary);
      file.seekg(offset);
      while (offset < size) {
        std::string& data = *message.mutable_data();
        data.resize(std::min(kChunk, static_cast<size_t>(size - offset)));
        if (!file.read(data.data(), static_cast<std::streamsize>(data.size()))) {
          local = absl::FailedPreconditionError(
              absl::StrCat(files_[i].path, ": became shorter while it was sent"));
          break;
        }
        message.set_name(upload.name());
        message.set_file(files_[i].description.name());
        message.set_offset(offset);
        any = true;
        if (!writer->Write(message)) break;  // Finish() says why
        offset += static_cast<int64_t>(data.size());
        sent += static_cast<int64_t>(data.size());
        const double seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        const double rate = static_cast<double>(sent - already) / std::max(seconds, 1e-6);
        bar_.Show("uploading", Part(sent, total_),
                  static_cast<double>(total_ - sent) / std::max(rate, 1.0),
                  absl::StrCat(FormatBytes(sent), " of ", FormatBytes(total_)));
      }
      if (offset < size) break;
    }
    if (!local.ok()) context.TryCancel();
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    if (!local.ok()) return local;
    if (!any) return absl::OkStatus();  // everything was there: an empty stream is no error here
    return client_.Explain(status);
  }

  const Client& client_;
  Stub& stub_;
  const std::vector<LocalFile>& files_;
  ProgressBar& bar_;
  int64_t total_ = 0;
};

// An unfinished upload of the same files, or a new one.
absl::StatusOr<v1::Upload> FindOrCreate(const Client& client, Stub& stub, v1::Upload::Kind kind,
                                        const std::vector<LocalFile>& files,
                                        const std::string& id) {
  v1::ListUploadsRequest page;
  do {
    grpc::ClientContext context;
    client.Prepare(&context);
    v1::ListUploadsResponse response;
    const grpc::Status status = stub.ListUploads(&context, page, &response);
    if (!status.ok()) return client.Explain(status);
    for (const v1::Upload& upload : response.uploads()) {
      const std::string taken = upload.resource().substr(upload.resource().find('/') + 1);
      if (upload.kind() == kind && SameFiles(upload, files) && (id.empty() || id == taken)) {
        return upload;
      }
    }
    page.set_page_token(response.next_page_token());
  } while (!page.page_token().empty());
  v1::CreateUploadRequest request;
  request.set_kind(kind);
  request.set_resource_id(id);
  for (const LocalFile& file : files) *request.add_files() = file.description;
  grpc::ClientContext context;
  client.Prepare(&context);
  v1::Upload upload;
  const grpc::Status status = stub.CreateUpload(&context, request, &upload);
  if (!status.ok()) return client.Explain(status);
  return upload;
}

absl::StatusOr<std::string> Send(const Client& client, Stub& stub, v1::Upload::Kind kind,
                                 const std::vector<LocalFile>& files, const std::string& id,
                                 ProgressBar& bar) {
  NIBBLE_ASSIGN_OR_RETURN(v1::Upload upload, FindOrCreate(client, stub, kind, files, id));
  Sender sender(client, stub, files, bar);
  NIBBLE_RETURN_IF_ERROR(sender.SendAll(upload));
  bar.Show("verifying", 1, {}, "");
  v1::FinishUploadRequest request;
  request.set_name(upload.name());
  grpc::ClientContext context;
  client.Prepare(&context);
  v1::FinishUploadResponse response;
  const grpc::Status status = stub.FinishUpload(&context, request, &response);
  if (!status.ok()) return client.Explain(status);
  return upload.resource();
}

}  // namespace

absl::StatusOr<std::string> UploadModel(const Client& client, const std::string& path,
                                        const UploadOptions& options) {
  ProgressBar bar(options.quiet);
  NIBBLE_ASSIGN_OR_RETURN(const SourceFiles source, ListSourceFiles(path));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<LocalFile> files,
                          Describe(source.directory, source.names, bar));
  std::vector<FileRecord> records;
  for (const LocalFile& file : files) {
    records.push_back(
        {file.description.name(), file.description.size_bytes(), file.description.sha256(), 0});
  }
  const auto stub = v1::QuantizationService::NewStub(client.channel());
  v1::ListModelsRequest request;
  request.set_digest(FilesDigest(records));
  grpc::ClientContext context;
  client.Prepare(&context);
  v1::ListModelsResponse response;
  const grpc::Status status = stub->ListModels(&context, request, &response);
  if (!status.ok()) return client.Explain(status);
  for (const v1::Model& model : response.models()) {
    if (options.id.empty() || model.name() == absl::StrCat("models/", options.id)) {
      return model.name();
    }
  }
  return Send(client, *stub, v1::Upload::MODEL, files, options.id, bar);
}

absl::StatusOr<std::string> UploadText(const Client& client, const std::string& path,
                                       const UploadOptions& options) {
  ProgressBar bar(options.quiet);
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<LocalFile> files, Describe("", {path}, bar));
  const v1::UploadFile& file = files.front().description;
  const auto stub = v1::QuantizationService::NewStub(client.channel());
  v1::ListCalibrationSetsRequest request;
  request.set_sha256(file.sha256());
  grpc::ClientContext context;
  client.Prepare(&context);
  v1::ListCalibrationSetsResponse response;
  const grpc::Status status = stub->ListCalibrationSets(&context, request, &response);
  if (!status.ok()) return client.Explain(status);
  for (const v1::CalibrationSet& set : response.calibration_sets()) {
    // The extension says how the file is read, so the name must be the same too.
    if (set.file().name() == file.name()) return set.name();
  }
  return Send(client, *stub, v1::Upload::CALIBRATION_SET, files, options.id, bar);
}

}  // namespace nibble
