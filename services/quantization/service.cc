// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/service.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <functional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/posix_status.h"
#include "nibble/v1/quantization.grpc.pb.h"
#include "services/common/grpc_status.h"
#include "services/common/names.h"
#include "services/common/server.h"
#include "services/common/work_pool.h"
#include "services/quantization/publish.h"
#include "services/quantization/sqlite_job_store.h"
#include "services/quantization/sqlite_resource_store.h"
#include "services/quantization/status_macros.h"
#include "services/quantization/store_schema.h"
#include "services/quantization/streams.h"
#include "services/quantization/sweeper.h"
#include "services/quantization/watch_hub.h"
#include "services/quantization/worker_identity.h"

namespace nibble {
namespace {

constexpr std::chrono::milliseconds kRetry{1000};

// Holds the data directory for one service, as long as the process lives.
class DirectoryLock {
 public:
  DirectoryLock() = default;
  ~DirectoryLock() {
    if (fd_ >= 0) ::close(fd_);
  }
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

  absl::Status Take(const DataLayout& layout) {
    fd_ = ::open(layout.ServiceLock().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd_ < 0) return ErrnoStatus(errno, "open", layout.ServiceLock());
    if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("data directory '", layout.root, "' is in use by another server"));
  }

 private:
  int fd_ = -1;
};

// A reactor that ends at once.
template <typename Reactor>
Reactor* Refuse(const absl::Status& status) {
  class Refused : public Reactor {
   public:
    explicit Refused(const grpc::Status& why) { this->Finish(why); }
    void OnDone() override { delete this; }
  };
  return new Refused(ToGrpc(status));
}

// The methods as gRPC wants them: who calls is checked here, the work goes to the pool.
class Rpcs : public v1::QuantizationService::CallbackService {
 public:
  Rpcs(QuantizationApi& api, WorkPool& pool, WatchHub& hub, const Authorizer& authorizer,
       const std::atomic<bool>& draining)
      : api_(api), pool_(pool), hub_(hub), authorizer_(authorizer), draining_(draining) {}

#define NIBBLE_UNARY(Method, Request, Response)                                                  \
  grpc::ServerUnaryReactor* Method(grpc::CallbackServerContext* context, const Request* request, \
                                   Response* response) override {                                \
    return Unary(context, [this, request, response](const Caller& caller) {                      \
      return api_.Method(caller, *request, response);                                            \
    });                                                                                          \
  }
  NIBBLE_UNARY(CreateUpload, v1::CreateUploadRequest, v1::Upload)
  NIBBLE_UNARY(GetUpload, v1::GetUploadRequest, v1::Upload)
  NIBBLE_UNARY(ListUploads, v1::ListUploadsRequest, v1::ListUploadsResponse)
  NIBBLE_UNARY(FinishUpload, v1::FinishUploadRequest, v1::FinishUploadResponse)
  NIBBLE_UNARY(DeleteUpload, v1::DeleteUploadRequest, google::protobuf::Empty)
  NIBBLE_UNARY(GetModel, v1::GetModelRequest, v1::Model)
  NIBBLE_UNARY(ListModels, v1::ListModelsRequest, v1::ListModelsResponse)
  NIBBLE_UNARY(DeleteModel, v1::DeleteModelRequest, google::protobuf::Empty)
  NIBBLE_UNARY(GetCalibrationSet, v1::GetCalibrationSetRequest, v1::CalibrationSet)
  NIBBLE_UNARY(ListCalibrationSets, v1::ListCalibrationSetsRequest, v1::ListCalibrationSetsResponse)
  NIBBLE_UNARY(DeleteCalibrationSet, v1::DeleteCalibrationSetRequest, google::protobuf::Empty)
  NIBBLE_UNARY(CreateJob, v1::CreateJobRequest, v1::Job)
  NIBBLE_UNARY(GetJob, v1::GetJobRequest, v1::Job)
  NIBBLE_UNARY(ListJobs, v1::ListJobsRequest, v1::ListJobsResponse)
  NIBBLE_UNARY(CancelJob, v1::CancelJobRequest, v1::Job)
  NIBBLE_UNARY(DeleteJob, v1::DeleteJobRequest, google::protobuf::Empty)
  NIBBLE_UNARY(ListJobLogs, v1::ListJobLogsRequest, v1::ListJobLogsResponse)
  NIBBLE_UNARY(GetJobReport, v1::GetJobReportRequest, v1::JobReport)
  NIBBLE_UNARY(GetArtifact, v1::GetArtifactRequest, v1::Artifact)
  NIBBLE_UNARY(ListArtifacts, v1::ListArtifactsRequest, v1::ListArtifactsResponse)
  NIBBLE_UNARY(DeleteArtifact, v1::DeleteArtifactRequest, google::protobuf::Empty)
  NIBBLE_UNARY(ListRecipes, v1::ListRecipesRequest, v1::ListRecipesResponse)
  NIBBLE_UNARY(ListSchemes, v1::ListSchemesRequest, v1::ListSchemesResponse)
#undef NIBBLE_UNARY

  grpc::ServerReadReactor<v1::WriteUploadRequest>* WriteUpload(grpc::CallbackServerContext* context,
                                                               v1::Upload* response) override {
    const absl::StatusOr<Caller> caller = Admit(*context);
    if (!caller.ok()) {
      return Refuse<grpc::ServerReadReactor<v1::WriteUploadRequest>>(caller.status());
    }
    return StartWriteUpload(Shared(), *caller, response);
  }

  grpc::ServerWriteReactor<v1::JobEvent>* WatchJob(grpc::CallbackServerContext* context,
                                                   const v1::WatchJobRequest* request) override {
    const absl::StatusOr<Caller> caller = Admit(*context);
    if (!caller.ok()) return Refuse<grpc::ServerWriteReactor<v1::JobEvent>>(caller.status());
    return StartWatchJob(Shared(), *caller, *request);
  }

  grpc::ServerWriteReactor<v1::DownloadArtifactResponse>* DownloadArtifact(
      grpc::CallbackServerContext* context, const v1::DownloadArtifactRequest* request) override {
    const absl::StatusOr<Caller> caller = Admit(*context);
    if (!caller.ok()) {
      return Refuse<grpc::ServerWriteReactor<v1::DownloadArtifactResponse>>(caller.status());
    }
    return StartDownload(Shared(), *caller, *request);
  }

 private:
  StreamContext Shared() { return {api_, pool_, hub_, draining_}; }

  absl::StatusOr<Caller> Admit(const grpc::CallbackServerContext& context) {
    if (draining_) return absl::UnavailableError("the server is going away");
    return Authorize(authorizer_, context, Role::kQuantize);
  }

  grpc::ServerUnaryReactor* Unary(grpc::CallbackServerContext* context,
                                  std::function<absl::Status(const Caller&)> work) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    absl::StatusOr<Caller> caller = Admit(*context);
    if (!caller.ok()) {
      reactor->Finish(ToGrpc(caller.status()));
      return reactor;
    }
    const bool queued =
        pool_.TryRun([reactor, caller = *std::move(caller), work = std::move(work)] {
          reactor->Finish(ToGrpc(work(caller)));
        });
    if (!queued) {
      reactor->Finish(ToGrpc(absl::ResourceExhaustedError("too many requests wait for the store"),
                             kRetry, context));
    }
    return reactor;
  }

  QuantizationApi& api_;
  WorkPool& pool_;
  WatchHub& hub_;
  const Authorizer& authorizer_;
  const std::atomic<bool>& draining_;
};

}  // namespace

QuantizationOptions QuantizationOptionsFrom(const Settings& settings) {
  QuantizationOptions options;
  options.data_dir = settings.data_dir;
  options.model_root = settings.model_root;
  options.uploads.max_files = settings.max_upload_files;
  options.uploads.max_bytes = settings.max_upload_bytes;
  options.uploads.quota.bytes = settings.upload_quota_bytes;
  options.uploads.expiry = absl::Seconds(settings.upload_expiry_hours * 3600);
  options.max_queued_jobs = settings.max_queued_jobs;
  options.pool_threads = settings.pool_threads;
  options.pool_queue = settings.pool_queue;
  options.supervisor.workers = settings.workers;
  options.supervisor.command = {"/proc/self/exe", "worker",
                                "--data-dir",     settings.data_dir,
                                "--threads",      absl::StrCat(settings.worker_threads),
                                "--device",       settings.worker_device};
  if (!settings.model_root.empty()) {
    options.supervisor.command.insert(options.supervisor.command.end(),
                                      {"--model-root", settings.model_root});
  }
  return options;
}

// In the order in which things come up; they go down in the opposite one.
struct QuantizationServer::Impl {
  Impl(QuantizationOptions given, const Authorizer& authorizer_in, Metrics& metrics_in)
      : options(std::move(given)),
        layout{options.data_dir},
        authorizer(authorizer_in),
        metrics(metrics_in) {}

  absl::Status Start() {
    NIBBLE_RETURN_IF_ERROR(layout.Create(fs));
    NIBBLE_RETURN_IF_ERROR(lock.Take(layout));
    NIBBLE_ASSIGN_OR_RETURN(
        database, OpenStoreDatabase(layout.Database(), absl::Seconds(10), [this](double seconds) {
          metrics.Observe(Metric::kStoreCommitSeconds, {}, seconds);
        }));
    LeaseOptions leases;
    leases.lease = options.lease;
    leases.worker_lives = WorkerLives;
    jobs = MakeSqliteJobStore(*database, clock, leases);
    resources = MakeSqliteResourceStore(*database, clock);
    const std::string identity = WorkerIdentity("service", ::getpid());
    NIBBLE_RETURN_IF_ERROR(CompletePublishes(*jobs, fs, layout, identity));
    NIBBLE_RETURN_IF_ERROR(Sweep(*jobs, *resources, fs, layout, clock));

    metrics.Add(Metric::kUploadedBytes, {}, 0);
    uploads = std::make_unique<Uploads>(
        *resources, fs, layout, options.uploads, clock, [this](size_t bytes) {
          metrics.Add(Metric::kUploadedBytes, {}, static_cast<double>(bytes));
        });
    api = std::make_unique<QuantizationApi>(QuantizationContext{*jobs, *resources, *uploads, fs,
                                                                clock, layout, options.model_root,
                                                                options.max_queued_jobs});
    pool =
        std::make_unique<WorkPool>(options.pool_threads, static_cast<size_t>(options.pool_queue));
    rpcs = std::make_unique<Rpcs>(*api, *pool, hub, authorizer, draining);
    supervisor = std::make_unique<Supervisor>(options.supervisor, *jobs);
    housekeeper = std::make_unique<Housekeeper>(options.housekeeper, *jobs, *resources, fs, layout,
                                                clock, identity, hub, metrics,
                                                [this] { return supervisor->restarts(); });
    return absl::OkStatus();
  }

  const QuantizationOptions options;
  const DataLayout layout;
  const Authorizer& authorizer;
  Metrics& metrics;
  FileSystem& fs = PosixFileSystem();
  const Clock clock;
  std::atomic<bool> draining = false;
  DirectoryLock lock;
  std::unique_ptr<SqliteDatabase> database;
  std::unique_ptr<JobStore> jobs;
  std::unique_ptr<ResourceStore> resources;
  std::unique_ptr<Uploads> uploads;
  std::unique_ptr<QuantizationApi> api;
  WatchHub hub;
  std::unique_ptr<WorkPool> pool;
  std::unique_ptr<Rpcs> rpcs;
  std::unique_ptr<Supervisor> supervisor;
  std::unique_ptr<Housekeeper> housekeeper;
};

absl::StatusOr<std::unique_ptr<QuantizationServer>> QuantizationServer::Create(
    QuantizationOptions options, const Authorizer& authorizer, Metrics& metrics) {
  auto impl = std::make_unique<Impl>(std::move(options), authorizer, metrics);
  NIBBLE_RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<QuantizationServer>(new QuantizationServer(std::move(impl)));
}

QuantizationServer::QuantizationServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
QuantizationServer::~QuantizationServer() = default;

grpc::Service* QuantizationServer::service() { return impl_->rpcs.get(); }

absl::StatusOr<LocalArtifact> QuantizationServer::ResolveArtifact(const std::string& name) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string id, ParseName("source", name, "artifacts"));
  return nibble::ResolveArtifact(*impl_->jobs, impl_->layout, id);
}

absl::StatusOr<std::string> QuantizationServer::ResolveModel(const std::string& name) {
  NIBBLE_RETURN_IF_ERROR(ParseName("source", name, "models").status());
  NIBBLE_ASSIGN_OR_RETURN(const ResourceRecord model, impl_->resources->GetResource(name));
  return impl_->layout.Source(model.directory);
}

void QuantizationServer::Drain() {
  impl_->draining = true;
  impl_->hub.PokeAll();
  impl_->supervisor->Stop();
}

std::vector<pid_t> QuantizationServer::worker_pids() const { return impl_->supervisor->pids(); }

}  // namespace nibble
