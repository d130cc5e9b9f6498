// SPDX-License-Identifier: Apache-2.0
// Every setting of `nibble serve`, with its default and range: what is not here cannot be set. The
// table in settings.cc gives each its flag and its line in `nibble serve --help`.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"

namespace nibble {

struct Settings {
  // Where.
  std::string data_dir;
  std::string address = "127.0.0.1:7460";
  std::string generation_address;  // "" = `address` carries both services
  std::string metrics_address = "127.0.0.1:7461";
  std::string model_root;  // "" = sources cannot be named by path
  std::vector<std::string> roles = {"quantization", "generation"};
  std::vector<std::string> load;  // NAME=SOURCE
  std::string device = "auto";
  bool batch_invariant = false;
  int32_t threads = 0;

  // Who.
  std::string tls_cert;
  std::string tls_key;
  std::string tls_client_ca;
  std::string tokens_file;
  bool insecure = false;

  // Connections.
  int32_t max_streams = 1024;
  int64_t max_message_bytes = 8 << 20;
  int64_t rpc_memory_bytes = 256 << 20;
  int32_t rpc_threads = 64;
  int32_t pool_threads = 2;
  int32_t pool_queue = 1024;
  double grace_seconds = 30;

  // Requests.
  int64_t max_text_bytes = 1 << 20;
  int32_t max_prompt_tokens = 1 << 20;
  int32_t max_tokens = 1 << 17;
  int32_t default_max_tokens = 256;
  int32_t max_choices = 16;
  int32_t max_stop_strings = 16;
  int32_t max_stop_bytes = 256;
  int32_t max_stop_tokens = 64;
  int32_t max_logit_bias = 300;
  int32_t max_chat_messages = 1000;
  double max_request_seconds = 600;

  // Models.
  int32_t max_models = 16;
  int64_t model_memory_bytes = 0;
  int32_t max_context = 32768;
  int32_t max_running = 32;
  int32_t max_waiting = 256;
  int64_t max_queued_tokens = 1 << 20;
  int32_t token_budget = 512;
  double slow_reader_seconds = 30;
  double stale_step_seconds = 60;

  // Jobs.
  int32_t workers = 1;
  int32_t worker_threads = 0;
  std::string worker_device = "cpu";  // the GPU's memory is the served models'
  int64_t max_upload_bytes = int64_t{64} << 30;
  int64_t upload_quota_bytes = int64_t{256} << 30;
  int32_t max_upload_files = 1000;
  double upload_expiry_hours = 24;
  int32_t max_queued_jobs = 1000;
};

struct SettingRow {
  std::string_view flag;  // "--max-tokens"
  std::variant<std::string Settings::*, bool Settings::*, int32_t Settings::*, int64_t Settings::*,
               double Settings::*, std::vector<std::string> Settings::*>
      field;
  double min = 0;  // numbers only, inclusive
  double max = 0;
  std::string_view help;   // one line; a number's range and default are added to it
  std::string_view group;  // heading in --help
};
std::span<const SettingRow> SettingRows();

// "1..256"; numbers only.
std::string RangeOf(const SettingRow& row);

// Ranges, and what must go together. InvalidArgument names flag, value and what is allowed.
absl::Status ValidateSettings(const Settings& settings);

// Whether "host:port" can be reached from this machine only ("unix:..." too).
bool IsLoopback(std::string_view address);

}  // namespace nibble
