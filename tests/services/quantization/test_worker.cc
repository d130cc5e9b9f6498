// SPDX-License-Identifier: Apache-2.0
// A worker process for tests: the real worker on the fake or the real pipeline, which can be told
// to kill or stop itself just before its N-th change of the file system, or when a phase begins.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/quant/pipeline.h"
#include "kernels/backend.h"
#include "services/quantization/lifeline.h"
#include "services/quantization/sqlite_job_store.h"
#include "services/quantization/sqlite_resource_store.h"
#include "services/quantization/store_schema.h"
#include "services/quantization/worker.h"
#include "services/quantization/worker_identity.h"
#include "tests/services/quantization/fake_pipeline.h"

namespace nibble {
namespace {

int64_t operations = 0;
int64_t signal_at = -1;
int signal_number = SIGKILL;

void Step() {
  if (operations++ == signal_at) ::raise(signal_number);
}

class StepFile : public WritableFile {
 public:
  explicit StepFile(std::unique_ptr<WritableFile> file) : file_(std::move(file)) {}
  absl::Status Append(std::string_view bytes) override {
    Step();
    return file_->Append(bytes);
  }
  absl::Status Sync() override {
    Step();
    return file_->Sync();
  }
  absl::Status Close() override { return file_->Close(); }

 private:
  std::unique_ptr<WritableFile> file_;
};

// The real file system, a step before each change.
class StepFileSystem : public FileSystem {
 public:
  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override {
    Step();
    return Wrap(fs_.Create(path));
  }
  absl::StatusOr<std::unique_ptr<WritableFile>> Continue(const std::string& path,
                                                         int64_t size) override {
    Step();
    return Wrap(fs_.Continue(path, size));
  }
  absl::Status CreateDirectory(const std::string& path) override {
    Step();
    return fs_.CreateDirectory(path);
  }
  absl::Status SyncDirectory(const std::string& path) override {
    Step();
    return fs_.SyncDirectory(path);
  }
  absl::Status RenameNoReplace(const std::string& from, const std::string& to) override {
    Step();
    return fs_.RenameNoReplace(from, to);
  }
  absl::Status Remove(const std::string& path) override {
    Step();
    return fs_.Remove(path);
  }
  absl::Status RemoveTree(const std::string& path) override {
    Step();
    return fs_.RemoveTree(path);
  }
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override {
    return fs_.List(path);
  }
  absl::StatusOr<int64_t> Size(const std::string& path) override { return fs_.Size(path); }
  absl::StatusOr<int64_t> FreeBytes(const std::string& path) override {
    return fs_.FreeBytes(path);
  }

 private:
  static absl::StatusOr<std::unique_ptr<WritableFile>> Wrap(
      absl::StatusOr<std::unique_ptr<WritableFile>> file) {
    if (!file.ok()) return file.status();
    return std::make_unique<StepFile>(*std::move(file));
  }
  FileSystem& fs_ = PosixFileSystem();
};

// Passes everything on, and raises the signal when `phase` begins.
class PhaseHost : public JobHost {
 public:
  PhaseHost(JobHost& host, std::string phase) : host_(host), phase_(std::move(phase)) {}
  std::vector<PipelineCheckpoint> Checkpoints() override { return host_.Checkpoints(); }
  absl::Status Commit(const PipelineCheckpoint& checkpoint) override {
    return host_.Commit(checkpoint);
  }
  void Report(const PipelineProgress& progress) override {
    host_.Report(progress);
    if (!phase_.empty() && progress.phase == phase_) ::raise(signal_number);
  }
  void Log(std::string_view line) override { host_.Log(line); }
  absl::Status KeepGoing() override { return host_.KeepGoing(); }

 private:
  JobHost& host_;
  const std::string phase_;
};

std::atomic<bool> drain = false;

int Main(int argc, char** argv) {
  CLI::App app("worker of the tests");
  std::string data_dir, model_root, name = "test", phase;
  int lifeline = -1, block_ms = 1, blocks = 4, lease_ms = 30000;
  bool once = false, stop = false, real = false;
  app.add_option("--data-dir", data_dir)->required();
  app.add_option("--model-root", model_root)->required();
  app.add_option("--name", name);
  app.add_option("--lifeline-fd", lifeline);
  app.add_option("--block-ms", block_ms);
  app.add_option("--blocks", blocks);
  app.add_option("--lease-ms", lease_ms);
  app.add_option("--signal-at", signal_at);
  app.add_option("--signal-in-phase", phase);
  app.add_flag("--stop", stop);
  app.add_flag("--real", real);
  app.add_flag("--once", once);
  CLI11_PARSE(app, argc, argv);
  if (stop) signal_number = SIGSTOP;
  std::signal(SIGTERM, [](int) { drain = true; });
  if (lifeline >= 0) WatchLifeline(lifeline, drain, std::chrono::milliseconds(2000));

  WorkerOptions options;
  options.layout.root = data_dir;
  options.model_root = model_root;
  options.identity = WorkerIdentity(name, ::getpid());
  options.idle_poll = std::chrono::milliseconds(10);
  options.times.heartbeat = std::chrono::milliseconds(lease_ms / 6);
  options.times.give_up = std::chrono::milliseconds(lease_ms * 2 / 3);
  options.on_last_resort = [] { ::_exit(3); };
  options.times.poll = std::chrono::milliseconds(lease_ms / 60);
  const auto database = OpenStoreDatabase(options.layout.Database());
  if (!database.ok()) {
    std::fprintf(stderr, "%s\n", database.status().ToString().c_str());
    return 1;
  }
  const Clock clock;
  LeaseOptions leases;
  leases.lease = absl::Milliseconds(lease_ms);
  leases.worker_lives = WorkerLives;
  const auto jobs = MakeSqliteJobStore(**database, clock, leases);
  const auto resources = MakeSqliteResourceStore(**database, clock);
  StepFileSystem fs;
  const FakePipelineOptions fake{blocks, std::chrono::milliseconds(block_ms), true};
  const auto backend = MakeCpuBackend({.threads = 1, .tier = ""});
  if (!backend.ok()) return 1;
  const Pipeline pipeline = [&](const PipelineSpec& spec, FileSystem& files,
                                const std::string& work_dir, const std::string& checkpoint_dir,
                                JobHost& host) {
    PhaseHost watched(host, phase);
    return real ? RunPipeline(spec, **backend, files, work_dir, checkpoint_dir, watched)
                : RunFakePipeline(fake, spec, files, work_dir, checkpoint_dir, watched);
  };
  Worker worker(options, *jobs, *resources, fs, pipeline, drain);
  if (!once) {
    worker.Run();
    return 0;
  }
  const absl::StatusOr<bool> ran = worker.RunOne();
  // Tells a test that waits for the end of the series of kills.
  std::printf("%lld\n", static_cast<long long>(operations));
  return ran.ok() ? 0 : 1;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Main(argc, argv); }
