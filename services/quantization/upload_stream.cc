// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <utility>

#include "services/common/grpc_status.h"
#include "services/quantization/convert.h"
#include "services/quantization/status_macros.h"
#include "services/quantization/streams.h"

namespace nibble {
namespace {

// Reads a message, writes it on the pool, reads the next one.
class WriteUploadStream : public grpc::ServerReadReactor<v1::WriteUploadRequest> {
 public:
  WriteUploadStream(StreamContext context, const Caller& caller, v1::Upload* response)
      : context_(context), caller_(caller), response_(response) {
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    context_.pool.Run([this, ok] { ok ? Take() : End(); });
  }
  void OnDone() override { delete this; }

 private:
  void Take() {
    if (const absl::Status status = Write(); !status.ok()) {
      // What was synced stays; the caller learns from GetUpload where to go on.
      writer_.reset();
      Finish(ToGrpc(status));
      return;
    }
    StartRead(&message_);
  }

  absl::Status Write() {
    if (writer_ == nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(const UploadRecord upload,
                              context_.api.FindUpload(caller_, message_.name()));
      NIBBLE_ASSIGN_OR_RETURN(writer_, context_.api.context().uploads.OpenWriter(upload.id));
      name_ = message_.name();
    } else if (!message_.name().empty() && message_.name() != name_) {
      return absl::InvalidArgumentError("name: a stream writes one upload");
    }
    if (!message_.file().empty()) file_ = message_.file();
    return writer_->Write(file_, message_.offset(), message_.data());
  }

  // The caller has sent everything, or is gone.
  void End() {
    if (writer_ == nullptr) {
      Finish(ToGrpc(absl::InvalidArgumentError("the stream held no message")));
      return;
    }
    absl::Status status = writer_->Close();
    if (status.ok()) {
      const absl::StatusOr<UploadRecord> upload = context_.api.FindUpload(caller_, name_);
      status = upload.status();
      if (upload.ok()) *response_ = ToProto(*upload);
    }
    Finish(ToGrpc(status));
  }

  const StreamContext context_;
  const Caller caller_;
  v1::Upload* const response_;
  v1::WriteUploadRequest message_;
  std::string name_;
  std::string file_;
  std::unique_ptr<UploadWriter> writer_;
};

}  // namespace

grpc::ServerReadReactor<v1::WriteUploadRequest>* StartWriteUpload(StreamContext context,
                                                                  const Caller& caller,
                                                                  v1::Upload* response) {
  return new WriteUploadStream(context, caller, response);
}

}  // namespace nibble
