// SPDX-License-Identifier: Apache-2.0
#include "services/cli/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "absl/strings/ascii.h"
#include "engine/base/cat.h"
#include "services/cli/exit_codes.h"
#include "services/common/grpc_status.h"
#include "services/common/settings.h"

namespace nibble {
namespace {

absl::StatusOr<std::string> ReadFile(const char* flag, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file.is_open() || file.bad()) {
    return absl::NotFoundError(Cat(flag, ": ", path, " cannot be read"));
  }
  return text.str();
}

}  // namespace

void AddClientOptions(CLI::App& command, ClientOptions* options) {
  options->server = Settings().address;
  command.add_option("--server", options->server, "host:port of the server")
      ->envname("NIBBLE_SERVER")
      ->capture_default_str();
  command.add_option("--token-file", options->token_file,
                     "file with the bearer token (or set NIBBLE_TOKEN)");
  command.add_option("--tls-ca", options->tls_ca,
                     "PEM file with the certificate to trust; without it, no TLS");
}

absl::StatusOr<std::unique_ptr<Client>> Client::Make(const ClientOptions& options) {
  auto client = std::make_unique<Client>();
  client->server_ = options.server;
  std::string token;
  if (!options.token_file.empty()) {
    absl::StatusOr<std::string> text = ReadFile("--token-file", options.token_file);
    if (!text.ok()) return text.status();
    token = std::string(absl::StripAsciiWhitespace(*text));
  } else if (const char* from_environment = std::getenv("NIBBLE_TOKEN")) {
    token = from_environment;
  }
  if (!token.empty()) client->authorization_ = "Bearer " + token;
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (!options.tls_ca.empty()) {
    absl::StatusOr<std::string> roots = ReadFile("--tls-ca", options.tls_ca);
    if (!roots.ok()) return roots.status();
    grpc::SslCredentialsOptions ssl;
    ssl.pem_root_certs = *roots;
    credentials = grpc::SslCredentials(ssl);
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  client->channel_ = grpc::CreateCustomChannel(options.server, credentials, arguments);
  return client;
}

void Client::Prepare(grpc::ClientContext* context) const {
  if (!authorization_.empty()) context->AddMetadata("authorization", authorization_);
}

absl::Status Client::Explain(const grpc::Status& status) const {
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE &&
      channel_->GetState(false) != GRPC_CHANNEL_READY) {
    return absl::UnavailableError(Cat("no server at ", server_,
                                      " (is `nibble serve` running? --server or NIBBLE_SERVER "
                                      "names another): ",
                                      status.error_message()));
  }
  return FromGrpc(status);
}

int Fail(const char* verb, const absl::Status& status) {
  std::fprintf(stderr, "nibble %s: %s\n", verb, std::string(status.message()).c_str());
  return ExitCodeFor(status);
}

}  // namespace nibble
