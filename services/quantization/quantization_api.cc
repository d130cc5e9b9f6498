// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/quantization_api.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/artifact/sha256.h"
#include "engine/base/cat.h"
#include "engine/quant/recipe.h"
#include "kernels/scheme.h"
#include "services/common/names.h"
#include "services/quantization/convert.h"
#include "services/quantization/job_spec.h"
#include "services/quantization/paging.h"
#include "services/quantization/source_files.h"
#include "services/quantization/status_macros.h"

namespace nibble {
namespace {

constexpr size_t kMaxRequestId = 128;

bool IsAdmin(const Caller& caller) {
  return (caller.roles & static_cast<uint8_t>(Role::kAdmin)) != 0;
}

absl::Status NeedAdmin(const Caller& caller, const char* what) {
  if (IsAdmin(caller)) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("'", caller.name, "' lacks the role admin, which ", what, " needs"));
}

bool Sees(const Caller& caller, const std::string& tenant) {
  return IsAdmin(caller) || caller.tenant == tenant;
}

// The tenant whose things the caller lists; "" = all.
std::string Lists(const Caller& caller) { return IsAdmin(caller) ? "" : caller.tenant; }

// Anybody else's things look as if they were not there.
absl::Status Hidden(const std::string& name) {
  return absl::NotFoundError(absl::StrCat("there is no ", name));
}

// "hidden_size" of a config.json, or that of a large model where the file does not say.
int64_t HiddenSize(const std::string& config_path) {
  constexpr int64_t kLarge = 8192;
  constexpr std::streamsize kMaxConfig = 1 << 20;
  std::ifstream file(config_path, std::ios::binary);
  std::string text(kMaxConfig, '\0');
  file.read(text.data(), kMaxConfig);
  text.resize(static_cast<size_t>(file.gcount()));
  const nlohmann::json config = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object() || !config.contains("hidden_size") ||
      !config["hidden_size"].is_number_integer()) {
    return kLarge;
  }
  return std::clamp(config["hidden_size"].get<int64_t>(), int64_t{1}, int64_t{1} << 20);
}

absl::Status CheckRequestId(const std::string& id) {
  const bool printable =
      std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (id.size() <= kMaxRequestId && printable) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("request_id: ", id.size(),
                                                 " bytes; it must be 1..128 printable ASCII "
                                                 "characters without spaces"));
}

}  // namespace

// ---- finding ----

absl::StatusOr<UploadRecord> QuantizationApi::FindUpload(const Caller& caller,
                                                         const std::string& name) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string id, ParseName("name", name, "uploads"));
  NIBBLE_ASSIGN_OR_RETURN(UploadRecord upload, c_.resources.GetUpload(id));
  if (!Sees(caller, upload.tenant)) return Hidden(name);
  return upload;
}

absl::StatusOr<JobRecord> QuantizationApi::FindJob(const Caller& caller, const std::string& name) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string id, ParseName("name", name, "jobs"));
  NIBBLE_ASSIGN_OR_RETURN(JobRecord job, c_.jobs.GetJob(id));
  if (!Sees(caller, job.tenant)) return Hidden(name);
  return job;
}

absl::StatusOr<ArtifactRecord> QuantizationApi::FindArtifact(const Caller& caller,
                                                             const std::string& name) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string id, ParseName("name", name, "artifacts"));
  NIBBLE_ASSIGN_OR_RETURN(ArtifactRecord artifact, c_.jobs.GetArtifact(id));
  if (!Sees(caller, artifact.tenant)) return Hidden(name);
  return artifact;
}

absl::StatusOr<ResourceRecord> QuantizationApi::FindResource(const Caller& caller,
                                                             const std::string& name,
                                                             std::string_view collection) {
  NIBBLE_RETURN_IF_ERROR(ParseName("name", name, collection).status());
  NIBBLE_ASSIGN_OR_RETURN(ResourceRecord resource, c_.resources.GetResource(name));
  if (!Sees(caller, resource.tenant)) return Hidden(name);
  return resource;
}

// ---- uploads ----

absl::Status QuantizationApi::CreateUpload(const Caller& caller,
                                           const v1::CreateUploadRequest& request,
                                           v1::Upload* response) {
  UploadRecord record;
  record.tenant = caller.tenant;
  record.creator = caller.name;
  switch (request.kind()) {
    case v1::Upload::MODEL:
      record.kind = ResourceKind::kModel;
      break;
    case v1::Upload::CALIBRATION_SET:
      record.kind = ResourceKind::kCalibrationSet;
      break;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("kind: ", static_cast<int>(request.kind()),
                       " is neither MODEL (1) nor CALIBRATION_SET (2)"));
  }
  const std::string id = request.resource_id().empty() ? RandomId() : request.resource_id();
  NIBBLE_RETURN_IF_ERROR(CheckIdentifier("resource_id", id));
  record.resource =
      absl::StrCat(record.kind == ResourceKind::kModel ? "models/" : "calibrationSets/", id);
  for (const v1::UploadFile& file : request.files()) {
    record.files.push_back({file.name(), file.size_bytes(), file.sha256(), 0});
  }
  NIBBLE_ASSIGN_OR_RETURN(const UploadRecord upload, c_.uploads.Create(std::move(record)));
  *response = ToProto(upload);
  return absl::OkStatus();
}

absl::Status QuantizationApi::GetUpload(const Caller& caller, const v1::GetUploadRequest& request,
                                        v1::Upload* response) {
  NIBBLE_ASSIGN_OR_RETURN(const UploadRecord upload, FindUpload(caller, request.name()));
  *response = ToProto(upload);
  return absl::OkStatus();
}

absl::Status QuantizationApi::ListUploads(const Caller& caller,
                                          const v1::ListUploadsRequest& request,
                                          v1::ListUploadsResponse* response) {
  const std::string filter = "uploads";
  NIBBLE_ASSIGN_OR_RETURN(const Page page,
                          ParsePage(request.page_size(), request.page_token(), filter));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<UploadRecord> found,
                          c_.resources.ListUploads(Lists(caller), page.size, page.cursor));
  for (const UploadRecord& upload : found) *response->add_uploads() = ToProto(upload);
  const bool full = static_cast<int32_t>(found.size()) == page.size;
  response->set_next_page_token(MakePageToken(full ? found.back().number : 0, filter));
  return absl::OkStatus();
}

absl::Status QuantizationApi::FinishUpload(const Caller& caller,
                                           const v1::FinishUploadRequest& request,
                                           v1::FinishUploadResponse* response) {
  NIBBLE_ASSIGN_OR_RETURN(const UploadRecord upload, FindUpload(caller, request.name()));
  NIBBLE_ASSIGN_OR_RETURN(const ResourceRecord resource, c_.uploads.Finish(upload.id));
  if (resource.kind == ResourceKind::kModel) {
    *response->mutable_model() = ModelToProto(resource);
  } else {
    *response->mutable_calibration_set() = CalibrationSetToProto(resource);
  }
  return absl::OkStatus();
}

absl::Status QuantizationApi::DeleteUpload(const Caller& caller,
                                           const v1::DeleteUploadRequest& request,
                                           google::protobuf::Empty*) {
  NIBBLE_ASSIGN_OR_RETURN(const UploadRecord upload, FindUpload(caller, request.name()));
  return c_.uploads.Delete(upload.id);
}

// ---- sources ----

absl::Status QuantizationApi::GetModel(const Caller& caller, const v1::GetModelRequest& request,
                                       v1::Model* response) {
  NIBBLE_ASSIGN_OR_RETURN(const ResourceRecord model,
                          FindResource(caller, request.name(), "models"));
  *response = ModelToProto(model);
  return absl::OkStatus();
}

absl::Status QuantizationApi::ListModels(const Caller& caller, const v1::ListModelsRequest& request,
                                         v1::ListModelsResponse* response) {
  const std::string filter = absl::StrCat("models ", request.digest());
  NIBBLE_ASSIGN_OR_RETURN(const Page page,
                          ParsePage(request.page_size(), request.page_token(), filter));
  NIBBLE_ASSIGN_OR_RETURN(const ResourcePage found,
                          c_.resources.ListResources(ResourceKind::kModel, Lists(caller),
                                                     request.digest(), page.size, page.cursor));
  for (const ResourceRecord& model : found.resources) *response->add_models() = ModelToProto(model);
  response->set_next_page_token(MakePageToken(found.next, filter));
  return absl::OkStatus();
}

absl::Status QuantizationApi::GetCalibrationSet(const Caller& caller,
                                                const v1::GetCalibrationSetRequest& request,
                                                v1::CalibrationSet* response) {
  NIBBLE_ASSIGN_OR_RETURN(const ResourceRecord set,
                          FindResource(caller, request.name(), "calibrationSets"));
  *response = CalibrationSetToProto(set);
  return absl::OkStatus();
}

absl::Status QuantizationApi::ListCalibrationSets(const Caller& caller,
                                                  const v1::ListCalibrationSetsRequest& request,
                                                  v1::ListCalibrationSetsResponse* response) {
  const std::string filter = absl::StrCat("calibrationSets ", request.sha256());
  NIBBLE_ASSIGN_OR_RETURN(const Page page,
                          ParsePage(request.page_size(), request.page_token(), filter));
  NIBBLE_ASSIGN_OR_RETURN(const ResourcePage found,
                          c_.resources.ListResources(ResourceKind::kCalibrationSet, Lists(caller),
                                                     request.sha256(), page.size, page.cursor));
  for (const ResourceRecord& set : found.resources) {
    *response->add_calibration_sets() = CalibrationSetToProto(set);
  }
  response->set_next_page_token(MakePageToken(found.next, filter));
  return absl::OkStatus();
}

absl::Status QuantizationApi::DeleteResource(const Caller& caller, const std::string& name,
                                             std::string_view collection) {
  NIBBLE_RETURN_IF_ERROR(NeedAdmin(caller, "deleting"));
  NIBBLE_ASSIGN_OR_RETURN(const ResourceRecord resource, FindResource(caller, name, collection));
  NIBBLE_RETURN_IF_ERROR(c_.resources.DeleteResource(name));
  return c_.fs.RemoveTree(c_.layout.Source(resource.directory));
}

absl::Status QuantizationApi::DeleteModel(const Caller& caller,
                                          const v1::DeleteModelRequest& request,
                                          google::protobuf::Empty*) {
  return DeleteResource(caller, request.name(), "models");
}

absl::Status QuantizationApi::DeleteCalibrationSet(const Caller& caller,
                                                   const v1::DeleteCalibrationSetRequest& request,
                                                   google::protobuf::Empty*) {
  return DeleteResource(caller, request.name(), "calibrationSets");
}

// ---- jobs ----

absl::StatusOr<QuantizationApi::Use> QuantizationApi::UseResource(const Caller& caller,
                                                                  const std::string& name,
                                                                  std::string_view collection,
                                                                  NewJob& job) {
  NIBBLE_ASSIGN_OR_RETURN(const ResourceRecord resource, FindResource(caller, name, collection));
  job.resources.push_back(name);
  return Use{resource.bytes(),
             HiddenSize(absl::StrCat(c_.layout.Source(resource.directory), "/config.json"))};
}

absl::StatusOr<QuantizationApi::Use> QuantizationApi::UsePath(const Caller& caller,
                                                              const std::string& path) {
  NIBBLE_RETURN_IF_ERROR(NeedAdmin(caller, "a source named by path"));
  NIBBLE_ASSIGN_OR_RETURN(const OpenSource source, OpenSource::Open(c_.model_root, path));
  return Use{source.bytes(), HiddenSize(source.ProcPath("config.json"))};
}

absl::Status QuantizationApi::UseText(const Caller& caller, const v1::TextSource& text,
                                      NewJob& job) {
  return text.source_case() == v1::TextSource::kPath
             ? UsePath(caller, text.path()).status()
             : UseResource(caller, text.calibration_set(), "calibrationSets", job).status();
}

absl::Status QuantizationApi::CheckDisk(const v1::JobSpec& spec, const Use& source,
                                        bool calibrates) {
  // Checkpoints and the artifact are each at most as large as a source of 16-bit weights; one that
  // is packed tighter may need more, and then the full disk pauses the job. Of the live activations
  // (two f32 streams) up to three sets are kept.
  int64_t need = 2 * source.bytes;
  if (calibrates) {
    need +=
        int64_t{spec.calibration_samples()} * spec.calibration_length() * source.hidden * 4 * 2 * 3;
  }
  NIBBLE_ASSIGN_OR_RETURN(const int64_t free, c_.fs.FreeBytes(c_.layout.root));
  if (need <= free - c_.keep_free) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("the job may need ", need, " bytes of disk; ",
                                                   free, " are free, of which ", c_.keep_free,
                                                   " are kept"));
}

absl::Status QuantizationApi::CreateJob(const Caller& caller, const v1::CreateJobRequest& request,
                                        v1::Job* response) {
  NIBBLE_RETURN_IF_ERROR(CheckRequestId(request.request_id()));
  NewJob job;
  job.tenant = caller.tenant;
  job.creator = caller.name;
  job.request_id = request.request_id();
  job.request_digest = Sha256Hex(request.spec().SerializeAsString());
  // A repeated request is answered before anything that may have changed since is looked at.
  NIBBLE_ASSIGN_OR_RETURN(
      const std::optional<JobRecord> earlier,
      c_.jobs.FindRequest(job.tenant, job.creator, job.request_id, job.request_digest));
  if (earlier.has_value()) {
    *response = ToProto(*earlier, c_.clock.Now());
    return absl::OkStatus();
  }

  NIBBLE_ASSIGN_OR_RETURN(v1::JobSpec spec, CompleteJobSpec(request.spec()));
  NIBBLE_ASSIGN_OR_RETURN(const Recipe recipe, RecipeOf(spec));
  Use source;
  if (spec.source_case() == v1::JobSpec::kModel) {
    NIBBLE_ASSIGN_OR_RETURN(source, UseResource(caller, spec.model(), "models", job));
    job.source = spec.model();
  } else {
    NIBBLE_ASSIGN_OR_RETURN(source, UsePath(caller, spec.model_path()));
    job.source = spec.model_path();
  }
  if (spec.has_calibration()) {
    NIBBLE_RETURN_IF_ERROR(UseText(caller, spec.calibration(), job));
  }
  if (spec.has_evaluation()) {
    NIBBLE_RETURN_IF_ERROR(UseText(caller, spec.evaluation(), job));
  }
  NIBBLE_RETURN_IF_ERROR(CheckDisk(spec, source, recipe.needs_calibration()));

  job.id = RandomId();
  if (spec.artifact_id().empty()) spec.set_artifact_id(job.id);
  job.artifact_id = spec.artifact_id();
  job.spec = spec.SerializeAsString();
  job.recipe = spec.method_case() == v1::JobSpec::kRecipe ? spec.recipe() : "custom";
  job.scheme = spec.scheme();
  job.kv_format = spec.kv_format();
  job.max_queued = c_.max_queued_jobs;
  NIBBLE_ASSIGN_OR_RETURN(const JobRecord created, c_.jobs.CreateJob(job));
  *response = ToProto(created, c_.clock.Now());
  return absl::OkStatus();
}

absl::Status QuantizationApi::GetJob(const Caller& caller, const v1::GetJobRequest& request,
                                     v1::Job* response) {
  NIBBLE_ASSIGN_OR_RETURN(const JobRecord job, FindJob(caller, request.name()));
  *response = ToProto(job, c_.clock.Now());
  return absl::OkStatus();
}

absl::Status QuantizationApi::ListJobs(const Caller& caller, const v1::ListJobsRequest& request,
                                       v1::ListJobsResponse* response) {
  std::string filter = "jobs";
  std::vector<JobState> states;
  for (const int state : request.states()) {
    if (state < v1::Job::QUEUED || state > v1::Job::CANCELLED) {
      return absl::InvalidArgumentError(absl::StrCat("states: ", state, " is not within 1..",
                                                     static_cast<int>(v1::Job::CANCELLED)));
    }
    states.push_back(static_cast<JobState>(state));
    absl::StrAppend(&filter, " ", state);
  }
  NIBBLE_ASSIGN_OR_RETURN(const Page page,
                          ParsePage(request.page_size(), request.page_token(), filter));
  NIBBLE_ASSIGN_OR_RETURN(const JobPage found,
                          c_.jobs.ListJobs(Lists(caller), states, page.size, page.cursor));
  for (const JobRecord& job : found.jobs) *response->add_jobs() = ToProto(job, c_.clock.Now());
  response->set_next_page_token(MakePageToken(found.next, filter));
  return absl::OkStatus();
}

absl::Status QuantizationApi::CancelJob(const Caller& caller, const v1::CancelJobRequest& request,
                                        v1::Job* response) {
  NIBBLE_ASSIGN_OR_RETURN(const JobRecord job, FindJob(caller, request.name()));
  NIBBLE_ASSIGN_OR_RETURN(const JobRecord after, c_.jobs.RequestCancel(job.id));
  *response = ToProto(after, c_.clock.Now());
  return absl::OkStatus();
}

absl::Status QuantizationApi::DeleteJob(const Caller& caller, const v1::DeleteJobRequest& request,
                                        google::protobuf::Empty*) {
  NIBBLE_RETURN_IF_ERROR(NeedAdmin(caller, "deleting"));
  NIBBLE_ASSIGN_OR_RETURN(const JobRecord job, FindJob(caller, request.name()));
  NIBBLE_RETURN_IF_ERROR(c_.jobs.DeleteJob(job.id));
  return c_.fs.RemoveTree(c_.layout.Job(job.id));
}

absl::Status QuantizationApi::ListJobLogs(const Caller& caller,
                                          const v1::ListJobLogsRequest& request,
                                          v1::ListJobLogsResponse* response) {
  NIBBLE_ASSIGN_OR_RETURN(const JobRecord job, FindJob(caller, request.name()));
  const std::string filter = absl::StrCat("logs ", job.id);
  NIBBLE_ASSIGN_OR_RETURN(const Page page,
                          ParsePage(request.page_size(), request.page_token(), filter));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<LogRecord> lines,
                          c_.jobs.ListLogs(job.id, page.cursor, page.size));
  for (const LogRecord& line : lines) *response->add_lines() = ToProto(line);
  const bool full = static_cast<int32_t>(lines.size()) == page.size;
  response->set_next_page_token(MakePageToken(full ? lines.back().line : 0, filter));
  return absl::OkStatus();
}

absl::Status QuantizationApi::GetJobReport(const Caller& caller,
                                           const v1::GetJobReportRequest& request,
                                           v1::JobReport* response) {
  NIBBLE_ASSIGN_OR_RETURN(const JobRecord job, FindJob(caller, request.name()));
  NIBBLE_ASSIGN_OR_RETURN(*response->mutable_json(), c_.jobs.GetReport(job.id));
  std::ifstream page(c_.layout.ReportHtml(job.id), std::ios::binary);
  response->mutable_html()->assign(std::istreambuf_iterator<char>(page),
                                   std::istreambuf_iterator<char>());
  return absl::OkStatus();
}

// ---- artifacts ----

absl::Status QuantizationApi::GetArtifact(const Caller& caller,
                                          const v1::GetArtifactRequest& request,
                                          v1::Artifact* response) {
  NIBBLE_ASSIGN_OR_RETURN(const ArtifactRecord artifact, FindArtifact(caller, request.name()));
  *response = ToProto(artifact);
  const std::string directory = c_.layout.Artifact(artifact.digest);
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> names, c_.fs.List(directory));
  for (const std::string& name : names) {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t bytes, c_.fs.Size(absl::StrCat(directory, "/", name)));
    v1::UploadFile* file = response->add_files();
    file->set_name(name);
    file->set_size_bytes(bytes);
  }
  return absl::OkStatus();
}

absl::Status QuantizationApi::ListArtifacts(const Caller& caller,
                                            const v1::ListArtifactsRequest& request,
                                            v1::ListArtifactsResponse* response) {
  const std::string filter = "artifacts";
  NIBBLE_ASSIGN_OR_RETURN(const Page page,
                          ParsePage(request.page_size(), request.page_token(), filter));
  NIBBLE_ASSIGN_OR_RETURN(const ArtifactPage found,
                          c_.jobs.ListArtifacts(Lists(caller), page.size, page.cursor));
  for (const ArtifactRecord& artifact : found.artifacts) {
    *response->add_artifacts() = ToProto(artifact);
  }
  response->set_next_page_token(MakePageToken(found.next, filter));
  return absl::OkStatus();
}

absl::Status QuantizationApi::DeleteArtifact(const Caller& caller,
                                             const v1::DeleteArtifactRequest& request,
                                             google::protobuf::Empty*) {
  NIBBLE_RETURN_IF_ERROR(NeedAdmin(caller, "deleting"));
  NIBBLE_ASSIGN_OR_RETURN(const ArtifactRecord artifact, FindArtifact(caller, request.name()));
  return nibble::DeleteArtifact(c_.jobs, c_.fs, c_.layout, artifact.id);
}

// ---- what there is ----

absl::Status QuantizationApi::ListRecipes(const Caller&, const v1::ListRecipesRequest&,
                                          v1::ListRecipesResponse* response) {
  for (const std::string_view name : BuiltinRecipeNames()) {
    NIBBLE_ASSIGN_OR_RETURN(const Recipe recipe, BuiltinRecipe(name));
    v1::RecipeInfo* info = response->add_recipes();
    info->set_id(std::string(name));
    *info->mutable_recipe() = RecipeToProto(recipe);
    info->set_needs_calibration(recipe.needs_calibration());
  }
  return absl::OkStatus();
}

absl::Status QuantizationApi::ListSchemes(const Caller&, const v1::ListSchemesRequest&,
                                          v1::ListSchemesResponse* response) {
  for (const Scheme& scheme : kSchemes) {
    v1::SchemeInfo* info = response->add_schemes();
    info->set_id(std::string(scheme.name));
    info->set_bits(scheme.bits());
    info->set_group(scheme.quantized() ? static_cast<int32_t>(scheme.group) : 0);
    info->set_asymmetric(!scheme.symmetric());
    info->set_int8_activations(scheme.activation == Activation::kInt8PerToken);
    info->set_e4m3_activations(scheme.activation == Activation::kE4M3PerToken);
    info->set_outliers(scheme.outliers);
  }
  return absl::OkStatus();
}

}  // namespace nibble
