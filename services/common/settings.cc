// SPDX-License-Identifier: Apache-2.0
#include "services/common/settings.h"

#include <cmath>
#include <type_traits>
#include <utility>

#include "engine/base/cat.h"
#include "kernels/open_device.h"

namespace nibble {
namespace {

using S = Settings;
constexpr double kMany = 1e6;
constexpr double kBytes = 1e15;

// clang-format off
const SettingRow kRows[] = {
    {"--data-dir", &S::data_dir, 0, 0, "directory that the server owns: jobs, uploads, artifacts", "Where"},
    {"--address", &S::address, 0, 0, "host:port of the gRPC services", "Where"},
    {"--generation-address", &S::generation_address, 0, 0, "host:port of the generation service, if it shall have its own", "Where"},
    {"--metrics-address", &S::metrics_address, 0, 0, "host:port of /metrics; empty = none", "Where"},
    {"--model-root", &S::model_root, 0, 0, "directory beneath which sources may be named by path; empty = none", "Where"},
    {"--roles", &S::roles, 0, 0, "services to run: quantization, generation", "Where"},
    {"--load", &S::load, 0, 0, "NAME=SOURCE: serve this artifact, model or path beneath --model-root from the start", "Where"},
    {"--device", &S::device, 0, 0, "what runs models: cpu, cuda:N (the N-th GPU), or auto: the first GPU if there is one, else the CPU", "Where"},
    {"--batch-invariant", &S::batch_invariant, 0, 0, "on a GPU: a token's bits do not depend on the other tokens of a step; slower. On the CPU they never do", "Where"},
    {"--threads", &S::threads, 0, 256, "threads of each model; 0 = one for each CPU", "Where"},

    {"--tls-cert", &S::tls_cert, 0, 0, "PEM file with the server's certificate chain", "Who may call"},
    {"--tls-key", &S::tls_key, 0, 0, "PEM file with its key", "Who may call"},
    {"--tls-client-ca", &S::tls_client_ca, 0, 0, "PEM file: callers must show a certificate signed by it", "Who may call"},
    {"--tokens-file", &S::tokens_file, 0, 0, "bearer tokens: lines of `sha256-of-token name tenant role[,role]`; re-read when it changes", "Who may call"},
    {"--insecure", &S::insecure, 0, 0, "allow an address beyond loopback without TLS and tokens", "Who may call"},

    {"--max-streams", &S::max_streams, 1, kMany, "RPCs at once on one connection", "Connections"},
    {"--max-message-bytes", &S::max_message_bytes, 2 << 20, 1 << 30, "bytes of one message received", "Connections"},
    {"--rpc-memory-bytes", &S::rpc_memory_bytes, 16 << 20, kBytes, "bytes that all connections may buffer", "Connections"},
    {"--rpc-threads", &S::rpc_threads, 2, 10000, "threads of the RPC layer", "Connections"},
    {"--pool-threads", &S::pool_threads, 1, 256, "threads for tokenizing, files and the database", "Connections"},
    {"--pool-queue", &S::pool_queue, 1, kMany, "work that may wait for them", "Connections"},
    {"--grace", &S::grace_seconds, 0, 3600, "seconds that running requests have to end after SIGTERM or unload", "Connections"},

    {"--max-text-bytes", &S::max_text_bytes, 1, 1 << 30, "bytes of a prompt given as text", "Requests"},
    {"--max-prompt-tokens", &S::max_prompt_tokens, 1, 1e8, "tokens of a prompt (the model's context limits it too)", "Requests"},
    {"--max-tokens", &S::max_tokens, 1, 1e8, "tokens generated for one choice", "Requests"},
    {"--default-max-tokens", &S::default_max_tokens, 1, 1e8, "the same when a request does not say", "Requests"},
    {"--max-n", &S::max_choices, 1, 256, "choices of one request", "Requests"},
    {"--max-stop-strings", &S::max_stop_strings, 0, 256, "stop texts of one request", "Requests"},
    {"--max-stop-bytes", &S::max_stop_bytes, 1, 65536, "bytes of one stop text", "Requests"},
    {"--max-stop-tokens", &S::max_stop_tokens, 0, 4096, "stop token ids of one request", "Requests"},
    {"--max-logit-bias", &S::max_logit_bias, 0, 100000, "logit bias entries of one request", "Requests"},
    {"--max-chat-messages", &S::max_chat_messages, 1, 100000, "messages of one conversation", "Requests"},
    {"--max-request-seconds", &S::max_request_seconds, 1, 86400, "deadline of a request that brings none, and the longest of all", "Requests"},

    {"--max-models", &S::max_models, 1, 256, "models served at once", "Models"},
    {"--model-memory", &S::model_memory_bytes, 0, kBytes, "bytes for weights and KV cache of a model that is loaded without a budget; 0 = weights and a KV cache of up to 1 GiB, at least one full context", "Models"},
    {"--max-context", &S::max_context, 16, 1e8, "longest sequence of a model that is loaded without saying", "Models"},
    {"--max-running", &S::max_running, 1, 256, "sequences that run at once, per model", "Models"},
    {"--max-waiting", &S::max_waiting, 1, kMany, "sequences that wait, per model", "Models"},
    {"--max-queued-tokens", &S::max_queued_tokens, 1, 1e12, "their prompt tokens", "Models"},
    {"--token-budget", &S::token_budget, 2, 65536, "tokens computed in one step, more than --max-running", "Models"},
    {"--slow-reader-seconds", &S::slow_reader_seconds, 1, 3600, "after this long without reading a stream ends", "Models"},
    {"--stale-step-seconds", &S::stale_step_seconds, 1, 86400, "a step older than this turns health", "Models"},

    {"--workers", &S::workers, 0, 64, "worker processes that quantize", "Jobs"},
    {"--worker-threads", &S::worker_threads, 0, 256, "threads of each; 0 = one for each CPU", "Jobs"},
    {"--worker-device", &S::worker_device, 0, 0, "what they calibrate and evaluate on: cpu, cuda:N or auto, as --device", "Jobs"},
    {"--max-upload-bytes", &S::max_upload_bytes, 1, kBytes, "bytes of one upload", "Jobs"},
    {"--upload-quota-bytes", &S::upload_quota_bytes, 1, kBytes, "bytes that the uploads, models and calibration sets of one caller may hold", "Jobs"},
    {"--max-upload-files", &S::max_upload_files, 1, 100000, "files of one upload", "Jobs"},
    {"--upload-expiry-hours", &S::upload_expiry_hours, 0.01, 8760, "an unfinished upload is dropped after this long", "Jobs"},
    {"--max-queued-jobs", &S::max_queued_jobs, 1, kMany, "jobs that wait", "Jobs"},
};
// clang-format on

// Whole numbers in full: 1073741824, not 1.07374e+09.
std::string Number(double value) {
  return value == std::floor(value) ? Cat(static_cast<int64_t>(value)) : Cat(value);
}

absl::Status CheckRange(const SettingRow& row, double value) {
  if (value >= row.min && value <= row.max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      Cat(row.flag, " is ", Number(value), "; it must be ", RangeOf(row)));
}

}  // namespace

std::span<const SettingRow> SettingRows() { return kRows; }

std::string RangeOf(const SettingRow& row) { return Cat(Number(row.min), "..", Number(row.max)); }

bool IsLoopback(std::string_view address) {
  if (address.starts_with("unix:")) return true;
  const size_t colon = address.rfind(':');
  const std::string_view host = colon == address.npos ? address : address.substr(0, colon);
  const bool numeric = host.find_first_not_of("0123456789.") == host.npos;
  return host == "localhost" || host == "[::1]" || (numeric && host.starts_with("127."));
}

absl::Status ValidateSettings(const Settings& settings) {
  for (const SettingRow& row : kRows) {
    const absl::Status status = std::visit(
        [&](auto field) -> absl::Status {
          const auto& value = settings.*field;
          using T = std::decay_t<decltype(value)>;
          if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
            return CheckRange(row, static_cast<double>(value));
          }
          return absl::OkStatus();
        },
        row.field);
    if (!status.ok()) return status;
  }
  if (settings.data_dir.empty()) {
    return absl::InvalidArgumentError("--data-dir is not given; it must name a directory");
  }
  if (absl::Status device = CheckDeviceName(settings.device); !device.ok()) {
    return absl::InvalidArgumentError(Cat("--", std::string(device.message())));
  }
  if (absl::Status device = CheckDeviceName(settings.worker_device); !device.ok()) {
    return absl::InvalidArgumentError(Cat("--worker-", std::string(device.message())));
  }
  if (settings.roles.empty()) {
    return absl::InvalidArgumentError("--roles is empty; give quantization, generation or both");
  }
  for (const std::string& role : settings.roles) {
    if (role != "quantization" && role != "generation") {
      return absl::InvalidArgumentError(
          Cat("--roles holds \"", role, "\"; it must be quantization, generation or both"));
    }
  }
  for (const std::string& load : settings.load) {
    const size_t equals = load.find('=');
    if (equals == 0 || equals == load.npos || equals + 1 == load.size()) {
      return absl::InvalidArgumentError(Cat("--load is \"", load, "\"; it must be NAME=SOURCE"));
    }
  }
  if (settings.token_budget <= settings.max_running) {
    return absl::InvalidArgumentError(Cat("--token-budget is ", settings.token_budget,
                                          "; it must be more than --max-running (",
                                          settings.max_running, ")"));
  }
  if (settings.max_waiting < settings.max_choices) {
    return absl::InvalidArgumentError(Cat("--max-waiting is ", settings.max_waiting,
                                          "; it must be at least --max-n (", settings.max_choices,
                                          ")"));
  }
  if (settings.tls_cert.empty() != settings.tls_key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key must be given together");
  }
  if (!settings.tls_client_ca.empty() && settings.tls_cert.empty()) {
    return absl::InvalidArgumentError("--tls-client-ca needs --tls-cert and --tls-key");
  }
  const bool guarded = !settings.tls_cert.empty() &&
                       (!settings.tokens_file.empty() || !settings.tls_client_ca.empty());
  for (const auto& [flag, address] :
       {std::pair{"--address", &settings.address},
        std::pair{"--generation-address", &settings.generation_address}}) {
    if (address->empty() || IsLoopback(*address) || guarded || settings.insecure) continue;
    return absl::InvalidArgumentError(
        Cat(flag, " is ", *address,
            ", which others can reach: give --tls-cert, --tls-key and --tokens-file (or "
            "--tls-client-ca), or say --insecure"));
  }
  return absl::OkStatus();
}

}  // namespace nibble
