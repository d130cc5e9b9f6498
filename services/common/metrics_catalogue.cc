// SPDX-License-Identifier: Apache-2.0
#include "services/common/metrics.h"

namespace nibble {
namespace {

using enum MetricKind;

constexpr std::string_view kModel = "model_name";
constexpr std::string_view kEngine = "engine";

// clang-format off
constexpr MetricRow kCatalogue[] = {
    // ---- Generation: requests
    {Metric::kRequestsAccepted, "nibble_requests_accepted_total", kCounter,
     "Requests handed to the engine. Each ends in nibble_requests_finished_total.", {kModel, kEngine}, {}},
    {Metric::kRequestsFinished, "nibble_requests_finished_total", kCounter,
     "Accepted requests that ended, by outcome: stop, length, cancelled, deadline, slow_reader, error, shutdown.",
     {kModel, kEngine, "outcome"}, {}},
    {Metric::kRequestsRejected, "nibble_requests_rejected_total", kCounter,
     "Requests refused before the engine had them, by reason: invalid, not_found, unauthorized, queue_full, "
     "deadline, unavailable, cancelled, internal.", {kModel, kEngine, "reason"}, {}},
    {Metric::kRequestsRunning, "nibble_requests_running", kGauge,
     "Sequences in the running batch.", {kModel, kEngine}, {}},
    {Metric::kRequestsWaiting, "nibble_requests_waiting", kGauge,
     "Sequences in the queue.", {kModel, kEngine}, {}},
    {Metric::kQueuedTokens, "nibble_queued_tokens", kGauge,
     "Prompt tokens of the sequences in the queue.", {kModel, kEngine}, {}},
    {Metric::kReaderPauses, "nibble_reader_pauses_total", kCounter,
     "Times a sequence paused because its reader was slow.", {kModel, kEngine}, {}},
    // ---- Generation: tokens and memory
    {Metric::kPromptTokens, "nibble_prompt_tokens_total", kCounter,
     "Prompt tokens computed.", {kModel, kEngine}, {}},
    {Metric::kGeneratedTokens, "nibble_generated_tokens_total", kCounter,
     "Tokens generated.", {kModel, kEngine}, {}},
    {Metric::kKvBlocksUsed, "nibble_kv_blocks_used", kGauge,
     "Blocks of the KV cache in use.", {kModel, kEngine}, {}},
    {Metric::kKvBlocksCapacity, "nibble_kv_blocks_capacity", kGauge,
     "Blocks of the KV cache.", {kModel, kEngine}, {}},
    {Metric::kPreemptions, "nibble_preemptions_total", kCounter,
     "Sequences that gave their KV blocks back and will be recomputed.", {kModel, kEngine}, {}},
    {Metric::kModelWeightBytes, "nibble_model_weight_bytes", kGauge,
     "Memory of weights, tables and workspace.", {kModel, kEngine}, {}},
    {Metric::kModelKvBytes, "nibble_model_kv_bytes", kGauge,
     "Memory of the KV cache.", {kModel, kEngine}, {}},
    {Metric::kModelInfo, "nibble_model_info", kGauge,
     "1 for each served model: what it is.", {kModel, kEngine, "digest", "scheme", "kv_format", "mode"}, {}},
    // ---- Generation: time
    {Metric::kSteps, "nibble_steps_total", kCounter,
     "Engine steps that computed something.", {kModel, kEngine}, {}},
    {Metric::kDeviceSeconds, "nibble_device_busy_seconds_total", kCounter,
     "Time that a GPU worked on steps, by its own clock.", {kModel, kEngine}, {}},
    {Metric::kStepSeconds, "nibble_step_seconds", kHistogram,
     "Time of an engine step.", {kModel, kEngine}, buckets::kLatency},
    {Metric::kIterationTokens, "nibble_iteration_tokens", kHistogram,
     "Tokens in an engine step.", {kModel, kEngine}, buckets::kTokens},
    {Metric::kLastStepAge, "nibble_last_step_age_seconds", kGauge,
     "Time since the engine last finished a step or, idle, looked for work.", {kModel, kEngine}, {}},
    {Metric::kTimeToFirstToken, "nibble_time_to_first_token_seconds", kHistogram,
     "From arrival to the first token.", {kModel, kEngine}, buckets::kLatency},
    {Metric::kInterTokenLatency, "nibble_inter_token_latency_seconds", kHistogram,
     "Between two tokens of one sequence.", {kModel, kEngine}, buckets::kLatency},
    {Metric::kTimePerOutputToken, "nibble_time_per_output_token_seconds", kHistogram,
     "Mean time between the tokens of a request that finished with stop or length after two tokens or more.",
     {kModel, kEngine}, buckets::kLatency},
    {Metric::kRequestLatency, "nibble_request_latency_seconds", kHistogram,
     "From arrival to the end of a request that finished with stop or length.", {kModel, kEngine}, buckets::kLatency},
    {Metric::kQueueTime, "nibble_queue_time_seconds", kHistogram,
     "From arrival to the first step with the sequence in it.", {kModel, kEngine}, buckets::kLatency},
    {Metric::kPrefillTime, "nibble_prefill_time_seconds", kHistogram,
     "From the first step of a sequence to its first token.", {kModel, kEngine}, buckets::kLatency},
    {Metric::kInferenceTime, "nibble_inference_time_seconds", kHistogram,
     "From the first step of a sequence to its last token.", {kModel, kEngine}, buckets::kLatency},
    {Metric::kDecodeTime, "nibble_decode_time_seconds", kHistogram,
     "From the first token of a sequence to its last.", {kModel, kEngine}, buckets::kLatency},
    {Metric::kCancelToFree, "nibble_cancel_to_free_seconds", kHistogram,
     "From a cancellation to the moment its KV blocks are free.", {kModel, kEngine}, buckets::kLatency},
    {Metric::kModelLoadSeconds, "nibble_model_load_seconds", kHistogram,
     "Time of a successful load.", {kModel, kEngine}, buckets::kLong},
    {Metric::kModelLoads, "nibble_model_loads_total", kCounter,
     "Loads by result: ok or failed.", {kModel, kEngine, "result"}, {}},
    // ---- Generation: shape of the requests
    {Metric::kRequestPromptTokens, "nibble_request_prompt_tokens", kHistogram,
     "Prompt tokens of accepted requests.", {kModel, kEngine}, buckets::kTokens},
    {Metric::kRequestGeneratedTokens, "nibble_request_generated_tokens", kHistogram,
     "Tokens generated for requests that ended.", {kModel, kEngine}, buckets::kTokens},
    {Metric::kRequestLongestChoice, "nibble_request_longest_choice_tokens", kHistogram,
     "Tokens of the longest choice of requests that ended.", {kModel, kEngine}, buckets::kTokens},
    {Metric::kRequestMaxTokens, "nibble_request_max_tokens", kHistogram,
     "max_tokens of accepted requests.", {kModel, kEngine}, buckets::kTokens},
    {Metric::kRequestChoices, "nibble_request_choices", kHistogram,
     "Choices (n) of accepted requests.", {kModel, kEngine}, buckets::kTokens},
    // ---- Quantization
    {Metric::kJobs, "nibble_jobs", kGauge,
     "Jobs in the store by state (queued, running, publishing, succeeded, failed, cancelled) and recipe (a built-in's "
     "name or custom).", {"state", "recipe"}, {}},
    {Metric::kJobsFinished, "nibble_jobs_finished_total", kCounter,
     "Jobs that ended, by final state and recipe.", {"state", "recipe"}, {}},
    {Metric::kJobQueueWait, "nibble_job_queue_wait_seconds", kHistogram,
     "From a job's creation to its first lease.", {}, buckets::kLong},
    {Metric::kBlockSeconds, "nibble_block_seconds", kHistogram,
     "Time to quantize one decoder block.", {"recipe"}, buckets::kLong},
    {Metric::kAttempts, "nibble_job_attempts_total", kCounter,
     "Attempts begun.", {"recipe"}, {}},
    {Metric::kLeasesLost, "nibble_leases_lost_total", kCounter,
     "Leases that expired.", {}, {}},
    {Metric::kCalibrationTokens, "nibble_calibration_tokens_total", kCounter,
     "Calibration tokens of the jobs that succeeded.", {"recipe"}, {}},
    {Metric::kArtifactBytes, "nibble_artifact_bytes", kGauge,
     "Bytes of all published artifacts.", {}, {}},
    {Metric::kArtifactPerplexityRatio, "nibble_artifact_perplexity_ratio", kHistogram,
     "Perplexity of a published artifact over that of its source.", {"recipe"}, buckets::kRatio},
    {Metric::kArtifactKl, "nibble_artifact_kl_nats", kHistogram,
     "KL divergence of a published artifact from its source, nats per token.", {"recipe"}, buckets::kKl},
    {Metric::kArtifactBitsPerWeight, "nibble_artifact_bits_per_weight", kGauge,
     "Bits per quantized weight of the artifact published last.", {"recipe"}, {}},
    {Metric::kWorkerRestarts, "nibble_worker_restarts_total", kCounter,
     "Worker processes started again after they ended.", {}, {}},
    {Metric::kStoreCommitSeconds, "nibble_store_commit_seconds", kHistogram,
     "Time of a write transaction of the job store.", {}, buckets::kLatency},
    {Metric::kDiskFree, "nibble_disk_free_bytes", kGauge,
     "Free bytes on the data directory's file system.", {}, {}},
    {Metric::kUploadedBytes, "nibble_uploaded_bytes_total", kCounter,
     "Bytes received by uploads.", {}, {}},
    // ---- RPCs
    {Metric::kRpcsStarted, "nibble_rpcs_started_total", kCounter,
     "RPCs begun.", {"service", "method"}, {}},
    {Metric::kRpcsFinished, "nibble_rpcs_finished_total", kCounter,
     "RPCs ended, by gRPC status code.", {"service", "method", "code"}, {}},
    {Metric::kRpcSeconds, "nibble_rpc_seconds", kHistogram,
     "Time of an RPC.", {"service", "method"}, buckets::kLatency},
    // ---- Process
    {Metric::kBuildInfo, "nibble_build_info", kGauge,
     "1: what was built, and with what.", {"version", "compiler", "build_type"}, {}},
    {Metric::kUptime, "nibble_uptime_seconds", kGauge,
     "Time since the process started.", {}, {}},
    {Metric::kResidentBytes, "nibble_resident_memory_bytes", kGauge,
     "Resident memory of the process.", {}, {}},
    {Metric::kCpuSeconds, "nibble_cpu_seconds_total", kCounter,
     "Processor time of the process.", {}, {}},
    {Metric::kThreads, "nibble_threads", kGauge,
     "Threads of the process.", {}, {}},
    {Metric::kOpenFiles, "nibble_open_files", kGauge,
     "Open file descriptors of the process.", {}, {}},
};
// clang-format on

constexpr bool InOrder() {
  for (size_t i = 0; i < std::size(kCatalogue); ++i) {
    if (static_cast<size_t>(kCatalogue[i].id) != i) return false;
    if ((kCatalogue[i].kind == kHistogram) == kCatalogue[i].buckets.empty()) return false;
    const bool total = kCatalogue[i].name.ends_with("_total");
    if ((kCatalogue[i].kind == kCounter) != total) return false;
    if (!kCatalogue[i].name.starts_with("nibble_")) return false;
  }
  return true;
}
static_assert(InOrder());
static_assert(std::size(kCatalogue) == static_cast<size_t>(Metric::kOpenFiles) + 1);

}  // namespace

std::span<const MetricRow> MetricCatalogue() { return kCatalogue; }

}  // namespace nibble
