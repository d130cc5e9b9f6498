// SPDX-License-Identifier: Apache-2.0
// GenerationService over gRPC's callback API: no RPC thread ever waits.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/common/auth.h"
#include "services/common/metrics.h"
#include "services/common/server.h"
#include "services/common/settings.h"
#include "services/generation/model_registry.h"

namespace grpc {
class Service;
}

namespace nibble {

// Thread-safe.
class GenerationServer {
 public:
  // Finds "artifacts/x", "models/x" or a path; on a thread that may block.
  using Resolver = ModelRegistry::Resolver;

  // All must outlive the server.
  GenerationServer(const Settings& settings, const Authorizer& authorizer, Resolver resolver,
                   Metrics& metrics, Health& health);
  // After the listeners have been shut down.
  ~GenerationServer();

  // To be registered with a Listener.
  grpc::Service* service();

  // Loads a model as LoadModel does, and waits. For --load.
  absl::Status LoadAndWait(const std::string& name, const std::string& source);

  // Whether every engine shows signs of life.
  bool Alive() const;

  // New requests are refused, running ones may finish for up to `grace`. Blocks.
  void Drain(std::chrono::milliseconds grace);

  // Why an engine cannot go on, if it cannot: the process should end then.
  absl::Status Failure() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

inline constexpr char kGenerationServiceName[] = "nibble.v1.GenerationService";

}  // namespace nibble
