// SPDX-License-Identifier: Apache-2.0
// All of `nibble serve` in the order in which it comes up and goes down.
#include "services/cli/server_process.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/artifact/file_system.h"
#include "engine/base/cat.h"
#include "kernels/open_device.h"
#include "services/cli/source_resolver.h"
#include "services/common/auth.h"
#include "services/common/log.h"
#include "services/common/metrics.h"
#include "services/common/process_metrics.h"
#include "services/common/server.h"
#include "services/generation/generation_service.h"
#include "services/generation/model_source.h"
#include "services/quantization/service.h"

namespace nibble {
namespace {

bool HasRole(const Settings& settings, std::string_view role) {
  return std::find(settings.roles.begin(), settings.roles.end(), role) != settings.roles.end();
}

// SIGTERM and SIGINT are taken by Wait, on this thread; all threads made later inherit the mask.
class Signals {
 public:
  Signals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  }
  // The signal, or 0 after a while.
  int Wait(std::chrono::milliseconds timeout) const {
    const timespec time{timeout.count() / 1000, (timeout.count() % 1000) * 1'000'000};
    return std::max(0, sigtimedwait(&set_, nullptr, &time));
  }
  // From now on a signal ends the process.
  void Release() const { pthread_sigmask(SIG_UNBLOCK, &set_, nullptr); }

 private:
  sigset_t set_;
};

}  // namespace

absl::Status RunServer(const Settings& settings) {
  if (absl::Status status = ValidateSettings(settings); !status.ok()) return status;
  const absl::Status made = PosixFileSystem().CreateDirectory(settings.data_dir);
  if (!made.ok() && !absl::IsAlreadyExists(made)) return made;
  const Signals signals;

  Metrics metrics;
  const std::shared_ptr<void> process_metrics = ExportProcessMetrics(metrics);
  Health health;
  absl::StatusOr<std::unique_ptr<Authorizer>> authorizer = Authorizer::Make(settings.tokens_file);
  if (!authorizer.ok()) return authorizer.status();

  std::vector<grpc::Service*> services;
  std::unique_ptr<QuantizationServer> quantization;
  if (HasRole(settings, "quantization")) {
    absl::StatusOr<std::unique_ptr<QuantizationServer>> created =
        QuantizationServer::Create(QuantizationOptionsFrom(settings), **authorizer, metrics);
    if (!created.ok()) return created.status();
    quantization = *std::move(created);
    services.push_back(quantization->service());
    health.Set(kQuantizationServiceName, true);
  }
  std::unique_ptr<GenerationServer> generation;
  if (HasRole(settings, "generation")) {
    const absl::StatusOr<OpenedDevice> device =
        OpenDevice(settings.device, {.threads = settings.threads, .tier = ""},
                   {.batch_invariant = settings.batch_invariant});
    if (!device.ok()) return device.status();
    LogInfo("device", {{"runs", device->line}});
    absl::Status swept = SweepScratch(ScratchDirectory(settings));
    if (!swept.ok()) return swept;
    generation = std::make_unique<GenerationServer>(
        settings, **authorizer, SourceResolver(settings, quantization.get()), metrics, health);
    services.push_back(generation->service());
  }

  std::unique_ptr<MetricsExposer> exposer;
  if (!settings.metrics_address.empty()) {
    absl::StatusOr<std::unique_ptr<MetricsExposer>> started =
        MetricsExposer::Start(settings.metrics_address, metrics);
    if (!started.ok()) return started.status();
    exposer = *std::move(started);
  }
  std::vector<std::unique_ptr<Listener>> listeners;
  const auto listen = [&](const std::string& address,
                          const std::vector<grpc::Service*>& carried) -> absl::Status {
    absl::StatusOr<std::unique_ptr<Listener>> started =
        Listener::Start(settings, address, carried, health, metrics);
    if (!started.ok()) return started.status();
    listeners.push_back(*std::move(started));
    return absl::OkStatus();
  };
  if (absl::Status status = listen(settings.address, services); !status.ok()) return status;
  if (!settings.generation_address.empty() && generation != nullptr) {
    absl::Status status = listen(settings.generation_address, {generation->service()});
    if (!status.ok()) return status;
  }
  health.Set("", true);

  absl::Status failure;
  for (const std::string& load : settings.load) {
    const size_t equals = load.find('=');
    failure = generation == nullptr
                  ? absl::InvalidArgumentError("--load needs the role generation")
                  : generation->LoadAndWait(load.substr(0, equals), load.substr(equals + 1));
    if (!failure.ok()) break;
  }
  if (failure.ok()) {
    std::string line = Cat("ready address=", listeners[0]->address());
    if (listeners.size() > 1) line += Cat(" generation-address=", listeners[1]->address());
    if (exposer != nullptr) line += Cat(" metrics=http://", exposer->address(), "/metrics");
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
  }

  while (failure.ok()) {
    if (signals.Wait(std::chrono::milliseconds(500)) != 0) break;
    if (generation == nullptr) continue;
    health.Set("", generation->Alive());
    failure = generation->Failure();
  }

  // Health turns first, so that load balancers look elsewhere while running requests finish.
  LogInfo("draining", {{"grace_seconds", Cat(settings.grace_seconds)}});
  health.Shutdown();
  signals.Release();
  const std::chrono::milliseconds grace(
      failure.ok() ? static_cast<int64_t>(settings.grace_seconds * 1000) : 0);
  std::thread workers([&] {
    if (quantization != nullptr) quantization->Drain();
  });
  if (generation != nullptr) generation->Drain(grace);
  workers.join();
  for (const auto& listener : listeners) listener->Shutdown(std::chrono::milliseconds(2000));
  exposer.reset();
  generation.reset();
  quantization.reset();
  LogInfo("stopped");
  return failure;
}

}  // namespace nibble
