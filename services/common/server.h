// SPDX-License-Identifier: Apache-2.0
// All gRPC wiring of a listener in one place: credentials, limits, keepalive, health, reflection,
// metrics of RPCs.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/common/auth.h"
#include "services/common/metrics.h"
#include "services/common/settings.h"

namespace grpc {
class Server;
class ServerContextBase;
class Service;
}  // namespace grpc

namespace nibble {

// What the health service says, on every listener. Thread-safe. "" = the process; a service's full
// name; "nibble.v1.GenerationService/<served model>".
class Health {
 public:
  void Set(const std::string& name, bool serving);
  bool Serving(const std::string& name) const;  // false if it was never set
  // Everything turns to not serving and stays so.
  void Shutdown();

 private:
  friend class Listener;
  void Attach(grpc::Server* server);
  void Detach(grpc::Server* server);

  mutable std::mutex mutex_;
  std::map<std::string, bool> states_;
  std::vector<grpc::Server*> servers_;
  bool shut_down_ = false;
};

// One address that takes RPCs.
class Listener {
 public:
  // Starts to serve. `services` must outlive the listener. Port 0 = any free one. NotFound or
  // InvalidArgument for TLS files, Unavailable if the address cannot be had.
  static absl::StatusOr<std::unique_ptr<Listener>> Start(const Settings& settings,
                                                         const std::string& address,
                                                         std::span<grpc::Service* const> services,
                                                         Health& health, Metrics& metrics);
  ~Listener();  // Shutdown(0)

  // host:port in use.
  const std::string& address() const { return address_; }
  // Takes no new RPCs; running ones have `grace` to end and are cancelled then.
  void Shutdown(std::chrono::milliseconds grace);

 private:
  Listener(std::unique_ptr<grpc::Server> server, std::string address, Health& health);

  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  Health& health_;
};

// Serves /metrics over HTTP while it lives. Unavailable if the address cannot be had.
class MetricsExposer {
 public:
  static absl::StatusOr<std::unique_ptr<MetricsExposer>> Start(const std::string& address,
                                                               Metrics& metrics);
  ~MetricsExposer();
  const std::string& address() const { return address_; }  // host:port in use

 private:
  struct Impl;
  MetricsExposer(std::unique_ptr<Impl> impl, std::string address);
  std::unique_ptr<Impl> impl_;
  std::string address_;
};

// The caller of an RPC, if he has the role.
absl::StatusOr<Caller> Authorize(const Authorizer& authorizer,
                                 const grpc::ServerContextBase& context, Role needed);

}  // namespace nibble
