// SPDX-License-Identifier: Apache-2.0
// The streaming methods of QuantizationService as reactors of gRPC's callback API. Files and
// database are touched on the work pool only; a reactor has at most one piece of work or one
// operation of gRPC under way, and deletes itself when gRPC is done with it.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>

#include "nibble/v1/quantization.pb.h"
#include "services/common/auth.h"
#include "services/common/work_pool.h"
#include "services/quantization/quantization_api.h"
#include "services/quantization/watch_hub.h"

namespace nibble {

// What the streams share; outlives them.
struct StreamContext {
  QuantizationApi& api;
  WorkPool& pool;
  WatchHub& hub;
  const std::atomic<bool>& draining;
};

grpc::ServerReadReactor<v1::WriteUploadRequest>* StartWriteUpload(StreamContext context,
                                                                  const Caller& caller,
                                                                  v1::Upload* response);

grpc::ServerWriteReactor<v1::JobEvent>* StartWatchJob(StreamContext context, const Caller& caller,
                                                      const v1::WatchJobRequest& request);

grpc::ServerWriteReactor<v1::DownloadArtifactResponse>* StartDownload(
    StreamContext context, const Caller& caller, const v1::DownloadArtifactRequest& request);

}  // namespace nibble
