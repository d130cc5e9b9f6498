// SPDX-License-Identifier: Apache-2.0
// Records of the stores as messages of the contract.
#pragma once

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "nibble/v1/quantization.pb.h"
#include "services/quantization/job_store.h"
#include "services/quantization/resource_store.h"

namespace nibble {

v1::Upload ToProto(const UploadRecord& upload);
v1::Model ModelToProto(const ResourceRecord& model);
v1::CalibrationSet CalibrationSetToProto(const ResourceRecord& set);
// `now`: for the estimate of the time left.
v1::Job ToProto(const JobRecord& job, absl::Time now);
v1::JobEvent ToProto(const JobEventRecord& event);
v1::LogLine ToProto(const LogRecord& line);
v1::Artifact ToProto(const ArtifactRecord& artifact);

}  // namespace nibble
