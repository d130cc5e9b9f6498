// SPDX-License-Identifier: Apache-2.0
// The catalogue of metrics: everything that nibble exports, of both services, in one table.
//
// Names begin with nibble_, units are base units, counters end in _total. What happens in a service
// is recorded with Add, Set and Observe; what the engine counts for itself is read when somebody
// scrapes, by a collector (AddCollector). Labels are few: a served model's name, engine="0", and a
// word from a short fixed list. Never put an id or a digest in a label, except in
// nibble_model_info.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace prometheus {
class Collectable;
}

namespace nibble {

enum class MetricKind : uint8_t { kCounter, kGauge, kHistogram };

// Upper bounds of histogram buckets, +Inf left out.
namespace buckets {
// Seconds: from half a millisecond, where a fast decode lives, to minutes.
inline constexpr double kLatency[] = {
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15,
    0.2,    0.3,   0.5,   0.75,  1,     1.5,    2.5,  5,     10,   20,   40,   80,    160, 640};
// Seconds: loads, blocks, waits in a queue of jobs.
inline constexpr double kLong[] = {0.01, 0.05, 0.1, 0.25, 0.5, 1,   2.5,   5,   10,
                                   25,   50,   100, 250,  500, 1e3, 2.5e3, 1e4, 1e5};
// Tokens.
inline constexpr double kTokens[] = {1,   2,    4,    8,    16,   32,    64,    128,   256,
                                     512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072};
// Perplexity of the quantized model over that of the source.
inline constexpr double kRatio[] = {0.99, 1,   1.005, 1.01, 1.02, 1.03, 1.05,
                                    1.08, 1.1, 1.15,  1.25, 1.5,  2,    10};
// Nats per token.
inline constexpr double kKl[] = {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02,
                                 0.05,   0.1,   0.2,   0.5,   1,    5};
}  // namespace buckets

enum class Metric : uint8_t {
  // Generation: requests. accepted = sum of finished + running + waiting; rejected ones were never
  // accepted.
  kRequestsAccepted,
  kRequestsFinished,
  kRequestsRejected,
  kRequestsRunning,
  kRequestsWaiting,
  kQueuedTokens,
  kReaderPauses,
  // Generation: tokens and memory.
  kPromptTokens,
  kGeneratedTokens,
  kKvBlocksUsed,
  kKvBlocksCapacity,
  kPreemptions,
  kModelWeightBytes,
  kModelKvBytes,
  kModelInfo,
  // Generation: time.
  kSteps,
  kDeviceSeconds,
  kStepSeconds,
  kIterationTokens,
  kLastStepAge,
  kTimeToFirstToken,
  kInterTokenLatency,
  kTimePerOutputToken,
  kRequestLatency,
  kQueueTime,
  kPrefillTime,
  kInferenceTime,
  kDecodeTime,
  kCancelToFree,
  kModelLoadSeconds,
  kModelLoads,
  // Generation: shape of the requests.
  kRequestPromptTokens,
  kRequestGeneratedTokens,
  kRequestLongestChoice,
  kRequestMaxTokens,
  kRequestChoices,
  // Quantization.
  kJobs,
  kJobsFinished,
  kJobQueueWait,
  kBlockSeconds,
  kAttempts,
  kLeasesLost,
  kCalibrationTokens,
  kArtifactBytes,
  kArtifactPerplexityRatio,
  kArtifactKl,
  kArtifactBitsPerWeight,
  kWorkerRestarts,
  kStoreCommitSeconds,
  kDiskFree,
  kUploadedBytes,
  // RPCs.
  kRpcsStarted,
  kRpcsFinished,
  kRpcSeconds,
  // Process.
  kBuildInfo,
  kUptime,
  kResidentBytes,
  kCpuSeconds,
  kThreads,
  kOpenFiles,
};

inline constexpr size_t kMaxMetricLabels = 6;

struct MetricRow {
  Metric id;
  std::string_view name;
  MetricKind kind;
  std::string_view help;
  std::array<std::string_view, kMaxMetricLabels> labels;  // names; unused ones are empty
  std::span<const double> buckets;                        // histograms only
};

// The catalogue (metrics_catalogue.cc), in the order of Metric.
std::span<const MetricRow> MetricCatalogue();

// A histogram that somebody else keeps, cumulative since the process started.
struct HistogramSnapshot {
  std::vector<uint64_t>
      counts;  // of each bucket of the catalogue's row, and of +Inf; not cumulative
  double sum = 0;
};

using MetricLabels = std::initializer_list<std::string_view>;

// What a collector writes into, during a scrape. Label values in the order of the row. One series
// may be emitted by one collector only.
class MetricSink {
 public:
  virtual ~MetricSink() = default;
  virtual void Emit(Metric id, MetricLabels label_values, double value) = 0;
  virtual void Emit(Metric id, MetricLabels label_values, const HistogramSnapshot& value) = 0;
};

// Thread-safe.
class Metrics {
 public:
  Metrics();
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // Adds to a counter. `amount` >= 0; adding 0 makes the series exist.
  void Add(Metric id, MetricLabels label_values, double amount = 1);
  // Sets a gauge.
  void Set(Metric id, MetricLabels label_values, double value);
  // Records one value in a histogram.
  void Observe(Metric id, MetricLabels label_values, double value);
  // Makes a histogram's series exist with no values, so that rates over it are 0, not absent.
  void Touch(Metric id, MetricLabels label_values);

  // Calls `collect` at each scrape until the returned handle dies; the handle's destructor waits
  // for a scrape under way. `collect` must not call this Metrics, nor block.
  [[nodiscard]] std::shared_ptr<void> AddCollector(std::function<void(MetricSink&)> collect);

  // Everything in the Prometheus text format.
  std::string Text() const;

 private:
  friend std::shared_ptr<prometheus::Collectable> MetricsCollectable(const Metrics& metrics);
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace nibble
