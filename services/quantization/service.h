// SPDX-License-Identifier: Apache-2.0
// The quantization service: store, uploads, worker processes, housekeeping and the RPCs, together.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/common/auth.h"
#include "services/common/metrics.h"
#include "services/common/settings.h"
#include "services/quantization/artifacts.h"
#include "services/quantization/housekeeper.h"
#include "services/quantization/quantization_api.h"
#include "services/quantization/supervisor.h"
#include "services/quantization/uploads.h"

namespace grpc {
class Service;
}

namespace nibble {

inline constexpr char kQuantizationServiceName[] = "nibble.v1.QuantizationService";

struct QuantizationOptions {
  std::string data_dir;
  std::string model_root;  // "" = no sources by path
  UploadLimits uploads;
  int32_t max_queued_jobs = 1000;
  int pool_threads = 2;
  int pool_queue = 1024;
  absl::Duration lease = absl::Seconds(30);
  SupervisorOptions supervisor;
  HousekeeperOptions housekeeper;
};

// What `nibble serve` was told, with workers that are this program's `worker` verb.
QuantizationOptions QuantizationOptionsFrom(const Settings& settings);

// Thread-safe.
class QuantizationServer {
 public:
  // Opens or creates the data directory, completes or reverts what was under way, sweeps, starts
  // the workers. FailedPrecondition if another service owns the directory. `authorizer` and
  // `metrics` must outlive the server.
  static absl::StatusOr<std::unique_ptr<QuantizationServer>> Create(QuantizationOptions options,
                                                                    const Authorizer& authorizer,
                                                                    Metrics& metrics);
  // After the listeners have been shut down.
  ~QuantizationServer();

  // To be registered with a Listener.
  grpc::Service* service();

  // "artifacts/x", pinned: it is not deleted while the pin lives. NotFound.
  absl::StatusOr<LocalArtifact> ResolveArtifact(const std::string& name);
  // "models/x": directory of an uploaded model.
  absl::StatusOr<std::string> ResolveModel(const std::string& name);

  // New requests get UNAVAILABLE, watchers are told to come back, workers hand back what they run.
  // Blocks until the workers have ended.
  void Drain();

  // Process ids of the workers that run now.
  std::vector<pid_t> worker_pids() const;

 private:
  struct Impl;
  explicit QuantizationServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
