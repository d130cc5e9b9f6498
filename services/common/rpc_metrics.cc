// SPDX-License-Identifier: Apache-2.0
#include "services/common/rpc_metrics.h"

#include <google/protobuf/descriptor.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "engine/base/cat.h"

namespace nibble {
namespace {

using grpc::experimental::InterceptionHookPoints;

constexpr std::string_view kHealth = "grpc.health.v1.Health";  // grpc++ answers it without protobuf

// Whether this program has such a method. A caller may name any other.
bool IsKnown(std::string_view service, std::string_view method) {
  if (service == kHealth) return method == "Check" || method == "Watch";
  return google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(
             Cat(service, ".", method)) != nullptr;
}

// One RPC. It is destroyed when the RPC is over, whatever way it went.
class RpcObserver : public grpc::experimental::Interceptor {
 public:
  RpcObserver(Metrics& metrics, std::string service, std::string method)
      : metrics_(metrics),
        service_(std::move(service)),
        method_(std::move(method)),
        start_(std::chrono::steady_clock::now()) {
    metrics_.Add(Metric::kRpcsStarted, {service_, method_});
  }

  ~RpcObserver() override {
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
    metrics_.Add(Metric::kRpcsFinished, {service_, method_, absl::StatusCodeToString(code_)});
    metrics_.Observe(Metric::kRpcSeconds, {service_, method_}, elapsed.count());
  }

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      code_ = static_cast<absl::StatusCode>(methods->GetSendStatus().error_code());
    }
    methods->Proceed();
  }

 private:
  Metrics& metrics_;
  const std::string service_;
  const std::string method_;
  const std::chrono::steady_clock::time_point start_;
  absl::StatusCode code_ = absl::StatusCode::kCancelled;  // gone before a status was sent
};

class Factory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit Factory(Metrics& metrics) : metrics_(metrics) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    std::string_view path = info->method();  // "/package.Service/Method"
    if (path.starts_with('/')) path.remove_prefix(1);
    const size_t slash = std::min(path.find('/'), path.size());
    const std::string_view service = path.substr(0, slash);
    const std::string_view method = path.substr(std::min(slash + 1, path.size()));
    // A caller's word must not become a label.
    if (!IsKnown(service, method)) return new RpcObserver(metrics_, "unknown", "unknown");
    return new RpcObserver(metrics_, std::string(service), std::string(method));
  }

 private:
  Metrics& metrics_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeRpcMetrics(
    Metrics& metrics) {
  return std::make_unique<Factory>(metrics);
}

}  // namespace nibble
