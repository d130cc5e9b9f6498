// SPDX-License-Identifier: Apache-2.0
#include "services/common/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <prometheus/exposer.h>

#include <algorithm>
#include <exception>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/match.h"
#include "engine/base/cat.h"
#include "services/common/metrics_collectable.h"
#include "services/common/rpc_metrics.h"

namespace nibble {
namespace {

constexpr int kKeepaliveMs = 30000;         // an idle connection is asked whether it lives
constexpr int kKeepaliveTimeoutMs = 20000;  // and dropped if it does not answer
constexpr int kMinClientPingMs = 10000;     // clients may ask as often as that

absl::StatusOr<std::string> ReadPem(std::string_view flag, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file.is_open() || file.bad()) {
    return absl::NotFoundError(Cat(flag, ": ", path, " cannot be read"));
  }
  if (text.str().find("-----BEGIN ") == std::string::npos) {
    return absl::InvalidArgumentError(Cat(flag, ": ", path, " is not a PEM file"));
  }
  return text.str();
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> Credentials(const Settings& settings) {
  if (settings.tls_cert.empty()) return grpc::InsecureServerCredentials();
  absl::StatusOr<std::string> cert = ReadPem("--tls-cert", settings.tls_cert);
  if (!cert.ok()) return cert.status();
  absl::StatusOr<std::string> key = ReadPem("--tls-key", settings.tls_key);
  if (!key.ok()) return key.status();
  const bool ask_client = !settings.tls_client_ca.empty();
  grpc::SslServerCredentialsOptions options(
      ask_client ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                 : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  options.pem_key_cert_pairs.push_back({*key, *cert});
  if (ask_client) {
    absl::StatusOr<std::string> ca = ReadPem("--tls-client-ca", settings.tls_client_ca);
    if (!ca.ok()) return ca.status();
    options.pem_root_certs = *ca;
  }
  return grpc::SslServerCredentials(options);
}

// `address` with the port that is really in use.
std::string WithPort(const std::string& address, int port) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || absl::StartsWith(address, "unix:")) return address;
  return Cat(address.substr(0, colon), ":", port);
}

}  // namespace

// ---- Health

void Health::Set(const std::string& name, bool serving) {
  std::lock_guard lock(mutex_);
  if (shut_down_) return;
  states_[name] = serving;
  for (grpc::Server* server : servers_) {
    server->GetHealthCheckService()->SetServingStatus(name, serving);
  }
}

bool Health::Serving(const std::string& name) const {
  std::lock_guard lock(mutex_);
  const auto it = states_.find(name);
  return !shut_down_ && it != states_.end() && it->second;
}

void Health::Shutdown() {
  std::lock_guard lock(mutex_);
  shut_down_ = true;
  for (grpc::Server* server : servers_) server->GetHealthCheckService()->Shutdown();
}

void Health::Attach(grpc::Server* server) {
  std::lock_guard lock(mutex_);
  servers_.push_back(server);
  // A new listener begins with "" serving, which may not be so.
  server->GetHealthCheckService()->SetServingStatus("", false);
  for (const auto& [name, serving] : states_) {
    server->GetHealthCheckService()->SetServingStatus(name, serving);
  }
}

void Health::Detach(grpc::Server* server) {
  std::lock_guard lock(mutex_);
  std::erase(servers_, server);
}

// ---- Listener

absl::StatusOr<std::unique_ptr<Listener>> Listener::Start(const Settings& settings,
                                                          const std::string& address,
                                                          std::span<grpc::Service* const> services,
                                                          Health& health, Metrics& metrics) {
  static const bool plugins = [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  static_cast<void>(plugins);

  absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> credentials = Credentials(settings);
  if (!credentials.ok()) return credentials.status();

  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address, *credentials, &port);
  for (grpc::Service* service : services) builder.RegisterService(service);

  grpc::ResourceQuota quota("nibble");
  quota.Resize(static_cast<size_t>(settings.rpc_memory_bytes));
  quota.SetMaxThreads(settings.rpc_threads);
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(static_cast<int>(settings.max_message_bytes));
  builder.SetMaxSendMessageSize(-1);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, settings.max_streams);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinClientPingMs);
  // Two servers must not share a port without knowing of each other.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);

  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(MakeRpcMetrics(metrics));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));

  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(
        Cat("cannot listen on ", address, ": is another program using it?"));
  }
  health.Attach(server.get());
  return std::unique_ptr<Listener>(
      new Listener(std::move(server), WithPort(address, port), health));
}

Listener::Listener(std::unique_ptr<grpc::Server> server, std::string address, Health& health)
    : server_(std::move(server)), address_(std::move(address)), health_(health) {}

Listener::~Listener() { Shutdown(std::chrono::milliseconds(0)); }

void Listener::Shutdown(std::chrono::milliseconds grace) {
  if (server_ == nullptr) return;
  health_.Detach(server_.get());
  server_->Shutdown(std::chrono::system_clock::now() + grace);
  server_->Wait();
  server_.reset();
}

// ---- Metrics

struct MetricsExposer::Impl {
  explicit Impl(const std::string& address) : exposer(address) {}
  prometheus::Exposer exposer;
  std::shared_ptr<prometheus::Collectable> collectable;
};

absl::StatusOr<std::unique_ptr<MetricsExposer>> MetricsExposer::Start(const std::string& address,
                                                                      Metrics& metrics) {
  // The HTTP server knows "127.0.0.1:80" and "80", but no names.
  std::string numeric = address;
  if (absl::StartsWith(address, "localhost:")) numeric = Cat("127.0.0.1", address.substr(9));
  try {
    auto impl = std::make_unique<Impl>(numeric);
    impl->collectable = MetricsCollectable(metrics);
    impl->exposer.RegisterCollectable(impl->collectable);
    const std::vector<int> ports = impl->exposer.GetListeningPorts();
    const std::string in_use = ports.empty() ? address : WithPort(address, ports[0]);
    return std::unique_ptr<MetricsExposer>(new MetricsExposer(std::move(impl), in_use));
  } catch (const std::exception& error) {
    return absl::UnavailableError(Cat("cannot serve metrics on ", address, ": ", error.what()));
  }
}

MetricsExposer::MetricsExposer(std::unique_ptr<Impl> impl, std::string address)
    : impl_(std::move(impl)), address_(std::move(address)) {}
MetricsExposer::~MetricsExposer() = default;

// ---- Callers

absl::StatusOr<Caller> Authorize(const Authorizer& authorizer,
                                 const grpc::ServerContextBase& context, Role needed) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find("authorization");
  const std::string_view value = it == metadata.end()
                                     ? std::string_view()
                                     : std::string_view(it->second.data(), it->second.size());
  return authorizer.Check(value, needed);
}

}  // namespace nibble
