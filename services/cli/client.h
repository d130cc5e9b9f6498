// SPDX-License-Identifier: Apache-2.0
// How the verbs reach a server.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace CLI {
class App;
}

namespace nibble {

struct ClientOptions {
  std::string server;      // host:port
  std::string token_file;  // file with the bearer token; "" = $NIBBLE_TOKEN, if that is set
  std::string tls_ca;      // PEM file with the roots to trust; "" = no TLS
};

// Adds --server (or $NIBBLE_SERVER), --token-file and --tls-ca. `options` must outlive `command`.
void AddClientOptions(CLI::App& command, ClientOptions* options);

// A connection; does not wait for the server.
class Client {
 public:
  // NotFound if a file cannot be read.
  static absl::StatusOr<std::unique_ptr<Client>> Make(const ClientOptions& options);

  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  // To be called on the context of every RPC: adds the token.
  void Prepare(grpc::ClientContext* context) const;
  // The status of an RPC, with the server's address in the message if it could not be reached.
  absl::Status Explain(const grpc::Status& status) const;

 private:
  std::string server_;
  std::string authorization_;
  std::shared_ptr<grpc::Channel> channel_;
};

// Prints "nibble VERB: message" to stderr and returns the exit code.
int Fail(const char* verb, const absl::Status& status);

}  // namespace nibble
