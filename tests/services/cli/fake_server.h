// SPDX-License-Identifier: Apache-2.0
// A quantization service whose answers a test writes, on a loopback port.
#pragma once

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <memory>
#include <string>

#include "kernels/check.h"
#include "services/cli/client.h"

namespace nibble {

class FakeServer {
 public:
  explicit FakeServer(grpc::Service* service) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service);
    server_ = builder.BuildAndStart();
    NIBBLE_CHECK(server_ != nullptr && port != 0);
    ClientOptions options;
    options.server = "127.0.0.1:" + std::to_string(port);
    client_ = *Client::Make(options);
  }
  ~FakeServer() { server_->Shutdown(); }
  FakeServer(const FakeServer&) = delete;
  FakeServer& operator=(const FakeServer&) = delete;

  const Client& client() const { return *client_; }

 private:
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Client> client_;
};

}  // namespace nibble
