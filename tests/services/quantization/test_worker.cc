// SPDX-License-Identifier: Apache-2.0
// A worker process for tests: the real worker on the fake or the real pipeline, which can be told
// to kill or stop itself at a given moment of an attempt.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <string_view>
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

// When an attempt is to end by a signal: "MARK STEPS", the STEPS-th step after it first passes
// MARK.
//
// A step is a change of the file system that is about to be made, or a call of the pipeline to its
// host. Passing a mark is step 0. The marks, in order:
//   attempt     nothing is on disk yet
//   block       the store has just named another block
//   evaluate    the evaluation begins
//   publishing  the store has committed PUBLISHING
//   rename      just before the artifact's directory is renamed
//   renamed     just after that
//   synced      the parent directory is synced; only the commit of SUCCEEDED is missing
//
// Thread-safe.
class Moments {
 public:
  int signal = SIGKILL;
  std::string at;     // of the first attempt of this process
  std::string plan;   // a file with a moment a line, each taken by one attempt of any process
  std::string story;  // a file that gets "MARK STEPS" for each mark, steps since "attempt"

  void BeginAttempt() {
    {
      const std::lock_guard lock(mutex_);
      std::string line = std::exchange(at, "");
      if (!plan.empty()) line = TakeLine();
      std::istringstream words(line);
      mark_.clear();
      words >> mark_ >> steps_;
      passed_ = false;
      all_steps_ = 0;
    }
    Pass("attempt");
  }
  void Pass(std::string_view mark) {
    const std::lock_guard lock(mutex_);
    if (!story.empty()) std::ofstream(story, std::ios::app) << mark << " " << all_steps_ << "\n";
    if (passed_ || mark != mark_) return;
    passed_ = true;
    left_ = steps_;
    RaiseIfDue();
  }
  void Step() {
    const std::lock_guard lock(mutex_);
    ++all_steps_;
    if (!passed_ || left_ <= 0) return;
    --left_;
    RaiseIfDue();
  }

 private:
  void RaiseIfDue() {
    if (left_ == 0) ::raise(signal);
  }
  std::string TakeLine() {
    std::ifstream in(plan);
    std::string first;
    std::getline(in, first);
    std::ostringstream rest;
    rest << in.rdbuf();
    in.close();
    std::ofstream(plan, std::ios::trunc) << rest.str();
    return first;
  }

  std::mutex mutex_;
  std::string mark_;
  int64_t steps_ = 0;
  bool passed_ = false;  // mark_
  int64_t left_ = 0;     // steps, once it has
  int64_t all_steps_ = 0;
};

Moments moments;

class StepFile : public WritableFile {
 public:
  explicit StepFile(std::unique_ptr<WritableFile> file) : file_(std::move(file)) {}
  absl::Status Append(std::string_view bytes) override {
    moments.Step();
    return file_->Append(bytes);
  }
  absl::Status Sync() override {
    moments.Step();
    return file_->Sync();
  }
  absl::Status Close() override { return file_->Close(); }

 private:
  std::unique_ptr<WritableFile> file_;
};

// The real file system, a step before each change.
class StepFileSystem : public FileSystem {
 public:
  explicit StepFileSystem(const DataLayout& layout) : layout_(layout) {}
  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override {
    moments.Step();
    return Wrap(fs_.Create(path));
  }
  absl::StatusOr<std::unique_ptr<WritableFile>> Continue(const std::string& path,
                                                         int64_t size) override {
    moments.Step();
    return Wrap(fs_.Continue(path, size));
  }
  absl::Status CreateDirectory(const std::string& path) override {
    // The first thing an attempt does is to make its job's directory.
    const bool begins = std::filesystem::path(path).parent_path() == layout_.Jobs();
    begins ? moments.BeginAttempt() : moments.Step();
    return fs_.CreateDirectory(path);
  }
  absl::Status SyncDirectory(const std::string& path) override {
    moments.Step();
    const absl::Status status = fs_.SyncDirectory(path);
    if (path == layout_.Artifacts()) moments.Pass("synced");
    return status;
  }
  absl::Status RenameNoReplace(const std::string& from, const std::string& to) override {
    moments.Step();
    moments.Pass("rename");
    const absl::Status status = fs_.RenameNoReplace(from, to);
    moments.Pass("renamed");
    return status;
  }
  absl::Status Remove(const std::string& path) override {
    moments.Step();
    return fs_.Remove(path);
  }
  absl::Status RemoveTree(const std::string& path) override {
    moments.Step();
    // The report is put in its place right after PUBLISHING is committed.
    if (std::filesystem::path(path).filename() == "report.html") moments.Pass("publishing");
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
  const DataLayout layout_;
  FileSystem& fs_ = PosixFileSystem();
};

// Passes everything on, a step before each call.
class StepHost : public JobHost {
 public:
  explicit StepHost(JobHost& host) : host_(host) {}
  std::vector<PipelineCheckpoint> Checkpoints() override {
    moments.Step();
    return host_.Checkpoints();
  }
  absl::Status Commit(const PipelineCheckpoint& checkpoint) override {
    moments.Step();
    absl::Status status = host_.Commit(checkpoint);
    if (status.ok()) moments.Pass("block");
    return status;
  }
  void Report(const PipelineProgress& progress) override {
    moments.Step();
    host_.Report(progress);
    if (progress.phase == "evaluate") moments.Pass("evaluate");
  }
  void Log(std::string_view line) override {
    moments.Step();
    host_.Log(line);
  }
  absl::Status KeepGoing() override {
    moments.Step();
    return host_.KeepGoing();
  }

 private:
  JobHost& host_;
};

std::atomic<bool> drain = false;

int Main(int argc, char** argv) {
  CLI::App app("worker of the tests");
  std::string data_dir, model_root, name = "test", tier;
  int lifeline = -1, block_ms = 1, blocks = 4, lease_ms = 30000;
  bool once = false, stop = false, real = false;
  app.add_option("--data-dir", data_dir)->required();
  app.add_option("--model-root", model_root)->required();
  app.add_option("--name", name);
  app.add_option("--lifeline-fd", lifeline);
  app.add_option("--block-ms", block_ms);
  app.add_option("--blocks", blocks);
  app.add_option("--lease-ms", lease_ms);
  app.add_option("--tier", tier);
  app.add_option("--at", moments.at);
  app.add_option("--plan", moments.plan);
  app.add_option("--story", moments.story);
  app.add_flag("--stop", stop);
  app.add_flag("--real", real);
  app.add_flag("--once", once);
  CLI11_PARSE(app, argc, argv);
  if (stop) moments.signal = SIGSTOP;
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
  StepFileSystem fs(options.layout);
  FakePipelineOptions fake;
  fake.blocks = blocks;
  fake.block_time = std::chrono::milliseconds(block_ms);
  const auto backend = MakeCpuBackend({.threads = 1, .tier = tier});
  if (!backend.ok()) return 1;
  const Pipeline pipeline = [&](const PipelineSpec& spec, FileSystem& files,
                                const std::string& work_dir, const std::string& checkpoint_dir,
                                JobHost& host) {
    StepHost watched(host);
    return real ? RunPipeline(spec, **backend, files, work_dir, checkpoint_dir, watched)
                : RunFakePipeline(fake, spec, files, work_dir, checkpoint_dir, watched);
  };
  Worker worker(options, *jobs, *resources, fs, pipeline, drain);
  if (!once) {
    worker.Run();
    return 0;
  }
  return worker.RunOne().ok() ? 0 : 1;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Main(argc, argv); }
