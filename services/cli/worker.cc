// SPDX-License-Identifier: Apache-2.0
// nibble worker: the process that quantizes. `nibble serve` starts its own; more may be started by
// hand on the same machine.
#include "services/quantization/worker.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/open_device.h"
#include "services/cli/client.h"
#include "services/cli/exit_codes.h"
#include "services/cli/verbs.h"
#include "services/common/log.h"
#include "services/quantization/lifeline.h"
#include "services/quantization/sqlite_job_store.h"
#include "services/quantization/sqlite_resource_store.h"
#include "services/quantization/store_schema.h"
#include "services/quantization/worker_identity.h"

namespace nibble {
namespace {

constexpr std::chrono::seconds kDrainGrace{8};

struct Options {
  std::string data_dir;
  std::string model_root;
  std::string name = "worker";
  std::string device = "cpu";
  int32_t threads = 0;
  int lifeline_fd = -1;
};

std::atomic<bool> drain = false;
static_assert(std::atomic<bool>::is_always_lock_free, "set in a signal handler");

int Run(const Options& options) {
  BecomeBackgroundProcess();
  std::signal(SIGTERM, [](int) { drain = true; });
  std::signal(SIGINT, [](int) { drain = true; });
  if (options.lifeline_fd >= 0) WatchLifeline(options.lifeline_fd, drain, kDrainGrace);

  const absl::StatusOr<OpenedDevice> device =
      OpenDevice(options.device, {.threads = options.threads, .tier = ""});
  if (!device.ok()) return Fail("worker", device.status());
  WorkerOptions worker;
  worker.layout.root = options.data_dir;
  worker.model_root = options.model_root;
  worker.identity = WorkerIdentity(options.name, ::getpid());
  worker.on_last_resort = [] {
    LogError("lease_lost", {{"action", "the work does not end; the process does"}});
    ::_exit(kExitFailure);
  };
  const absl::StatusOr<std::unique_ptr<SqliteDatabase>> database =
      OpenStoreDatabase(worker.layout.Database());
  if (!database.ok()) return Fail("worker", database.status());
  const Clock clock;
  LeaseOptions leases;
  leases.worker_lives = WorkerLives;
  const std::unique_ptr<JobStore> jobs = MakeSqliteJobStore(**database, clock, leases);
  const std::unique_ptr<ResourceStore> resources = MakeSqliteResourceStore(**database, clock);
  const Pipeline pipeline = [&](PipelineSpec spec, FileSystem& fs, const std::string& work_dir,
                                const std::string& checkpoint_dir, JobHost& host) {
    spec.threads = options.threads;
    return RunPipeline(spec, *device->backend, fs, work_dir, checkpoint_dir, host);
  };
  LogInfo("worker_ready", {{"identity", worker.identity}, {"device", device->line}});
  Worker(worker, *jobs, *resources, PosixFileSystem(), pipeline, drain).Run();
  return kExitOk;
}

}  // namespace

RunVerb AddWorker(CLI::App& command) {
  const auto options = std::make_shared<Options>();
  Options& o = *options;
  command.add_option("--data-dir", o.data_dir, "data directory of the server")->required();
  command.add_option("--model-root", o.model_root, "as given to the server");
  command
      .add_option("--device", o.device,
                  "what calibrates and evaluates: cpu, cuda:N (the N-th GPU), or auto: the first "
                  "GPU if there is one, else the CPU")
      ->capture_default_str();
  command.add_option("--threads", o.threads, "0 = one for each CPU")->capture_default_str();
  command.add_option("--name", o.name, "for logs; unique among workers")->capture_default_str();
  command.add_option("--lifeline-fd", o.lifeline_fd,
                     "end when this descriptor is at its end (set by the server)");
  command.footer(
      "A worker runs one job at a time. It may be stopped or killed at any moment: the job goes "
      "on\n"
      "at the last finished block. SIGTERM hands the job back within a block.\n"
      "Example:\n"
      "  nibble worker --data-dir /var/lib/nibble --threads 8");
  return [options] { return Run(*options); };
}

}  // namespace nibble
