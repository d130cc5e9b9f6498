// SPDX-License-Identifier: Apache-2.0
// The unary methods of QuantizationService as plain functions: who may, is it valid, what does the
// store say. Knows messages, but neither gRPC nor threads; every method may block on files and the
// database.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/artifact/file_system.h"
#include "google/protobuf/empty.pb.h"
#include "nibble/v1/quantization.pb.h"
#include "services/common/auth.h"
#include "services/quantization/artifacts.h"
#include "services/quantization/clock.h"
#include "services/quantization/data_layout.h"
#include "services/quantization/job_store.h"
#include "services/quantization/resource_store.h"
#include "services/quantization/uploads.h"

namespace nibble {

struct QuantizationContext {
  JobStore& jobs;
  ResourceStore& resources;
  Uploads& uploads;
  FileSystem& fs;
  const Clock& clock;
  DataLayout layout;
  std::string model_root;
  int32_t max_queued_jobs = 1000;
  int64_t keep_free = int64_t{256} << 20;  // bytes of the disk that jobs leave alone
};

// Thread-safe.
class QuantizationApi {
 public:
  explicit QuantizationApi(QuantizationContext context) : c_(std::move(context)) {}

  absl::Status CreateUpload(const Caller&, const v1::CreateUploadRequest&, v1::Upload*);
  absl::Status GetUpload(const Caller&, const v1::GetUploadRequest&, v1::Upload*);
  absl::Status ListUploads(const Caller&, const v1::ListUploadsRequest&, v1::ListUploadsResponse*);
  absl::Status FinishUpload(const Caller&, const v1::FinishUploadRequest&,
                            v1::FinishUploadResponse*);
  absl::Status DeleteUpload(const Caller&, const v1::DeleteUploadRequest&,
                            google::protobuf::Empty*);
  absl::Status GetModel(const Caller&, const v1::GetModelRequest&, v1::Model*);
  absl::Status ListModels(const Caller&, const v1::ListModelsRequest&, v1::ListModelsResponse*);
  absl::Status DeleteModel(const Caller&, const v1::DeleteModelRequest&, google::protobuf::Empty*);
  absl::Status GetCalibrationSet(const Caller&, const v1::GetCalibrationSetRequest&,
                                 v1::CalibrationSet*);
  absl::Status ListCalibrationSets(const Caller&, const v1::ListCalibrationSetsRequest&,
                                   v1::ListCalibrationSetsResponse*);
  absl::Status DeleteCalibrationSet(const Caller&, const v1::DeleteCalibrationSetRequest&,
                                    google::protobuf::Empty*);
  absl::Status CreateJob(const Caller&, const v1::CreateJobRequest&, v1::Job*);
  absl::Status GetJob(const Caller&, const v1::GetJobRequest&, v1::Job*);
  absl::Status ListJobs(const Caller&, const v1::ListJobsRequest&, v1::ListJobsResponse*);
  absl::Status CancelJob(const Caller&, const v1::CancelJobRequest&, v1::Job*);
  absl::Status DeleteJob(const Caller&, const v1::DeleteJobRequest&, google::protobuf::Empty*);
  absl::Status ListJobLogs(const Caller&, const v1::ListJobLogsRequest&, v1::ListJobLogsResponse*);
  absl::Status GetJobReport(const Caller&, const v1::GetJobReportRequest&, v1::JobReport*);
  absl::Status GetArtifact(const Caller&, const v1::GetArtifactRequest&, v1::Artifact*);
  absl::Status ListArtifacts(const Caller&, const v1::ListArtifactsRequest&,
                             v1::ListArtifactsResponse*);
  absl::Status DeleteArtifact(const Caller&, const v1::DeleteArtifactRequest&,
                              google::protobuf::Empty*);
  absl::Status ListRecipes(const Caller&, const v1::ListRecipesRequest&, v1::ListRecipesResponse*);
  absl::Status ListSchemes(const Caller&, const v1::ListSchemesRequest&, v1::ListSchemesResponse*);

  // For the streams: the record behind a name, if the caller may see it.
  absl::StatusOr<UploadRecord> FindUpload(const Caller& caller, const std::string& name);
  absl::StatusOr<JobRecord> FindJob(const Caller& caller, const std::string& name);
  absl::StatusOr<ArtifactRecord> FindArtifact(const Caller& caller, const std::string& name);

  const QuantizationContext& context() const { return c_; }

 private:
  absl::StatusOr<ResourceRecord> FindResource(const Caller& caller, const std::string& name,
                                              std::string_view collection);
  absl::Status DeleteResource(const Caller& caller, const std::string& name,
                              std::string_view collection);
  // What is known of a source before it is read.
  struct Use {
    int64_t bytes = 0;
    int64_t hidden = 0;  // width of the model
  };
  // Adds a resource to a job to be.
  absl::StatusOr<Use> UseResource(const Caller& caller, const std::string& name,
                                  std::string_view collection, NewJob& job);
  absl::StatusOr<Use> UsePath(const Caller& caller, const std::string& path);
  absl::Status UseText(const Caller& caller, const v1::TextSource& text, NewJob& job);
  absl::Status CheckDisk(const v1::JobSpec& spec, const Use& source, bool calibrates);

  const QuantizationContext c_;
};

}  // namespace nibble
