// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/housekeeper.h"

#include <map>
#include <utility>
#include <vector>

#include "engine/quant/recipe.h"
#include "services/common/log.h"
#include "services/quantization/publish.h"
#include "services/quantization/sweeper.h"

namespace nibble {
namespace {

using Steady = std::chrono::steady_clock;

constexpr int32_t kEventsAtOnce = 256;
constexpr JobState kStates[] = {JobState::kQueued,    JobState::kRunning, JobState::kPublishing,
                                JobState::kSucceeded, JobState::kFailed,  JobState::kCancelled};

std::string_view StateLabel(JobState state) {
  switch (state) {
    case JobState::kQueued:
      return "queued";
    case JobState::kRunning:
      return "running";
    case JobState::kPublishing:
      return "publishing";
    case JobState::kSucceeded:
      return "succeeded";
    case JobState::kFailed:
      return "failed";
    case JobState::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

// Values of the label "recipe".
std::vector<std::string> RecipeLabels() {
  std::vector<std::string> labels = {"custom"};
  for (const std::string_view name : BuiltinRecipeNames()) labels.emplace_back(name);
  return labels;
}

void LogIfBad(const char* event, const absl::Status& status) {
  if (!status.ok()) LogWarning(event, {{"error", status.ToString()}});
}

}  // namespace

Housekeeper::Housekeeper(HousekeeperOptions options, JobStore& jobs, ResourceStore& resources,
                         FileSystem& fs, DataLayout layout, const Clock& clock,
                         std::string identity, WatchHub& hub, Metrics& metrics,
                         std::function<int64_t()> restarts)
    : options_(options),
      jobs_(jobs),
      resources_(resources),
      fs_(fs),
      layout_(std::move(layout)),
      clock_(clock),
      identity_(std::move(identity)),
      hub_(hub),
      metrics_(metrics),
      restarts_(std::move(restarts)) {
  // Counters count what happens from now on; what happened before was another process's.
  const absl::StatusOr<int64_t> last = jobs_.LastSequence();
  if (last.ok()) sequence_ = *last;
  for (const std::string& recipe : RecipeLabels()) {
    for (const JobState state : {JobState::kSucceeded, JobState::kFailed, JobState::kCancelled}) {
      metrics_.Add(Metric::kJobsFinished, {StateLabel(state), recipe}, 0);
    }
    metrics_.Add(Metric::kAttempts, {recipe}, 0);
    metrics_.Add(Metric::kCalibrationTokens, {recipe}, 0);
  }
  metrics_.Add(Metric::kLeasesLost, {}, 0);
  metrics_.Add(Metric::kWorkerRestarts, {}, 0);
  metrics_.Touch(Metric::kJobQueueWait, {});
  thread_ = std::thread([this] { Loop(); });
}

Housekeeper::~Housekeeper() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stop_changed_.notify_all();
  thread_.join();
}

void Housekeeper::Loop() {
  Steady::time_point recover, gauges, sweep;  // due at once
  std::unique_lock lock(mutex_);
  while (!stop_) {
    lock.unlock();
    const Steady::time_point now = Steady::now();
    const auto due = [now](Steady::time_point& at, std::chrono::milliseconds every) {
      if (now < at) return false;
      at = now + every;
      return true;
    };
    if (due(recover, options_.recover)) Recover();
    if (due(sweep, options_.sweep)) {
      LogIfBad("sweep_failed", Sweep(jobs_, resources_, fs_, layout_, clock_));
    }
    Follow();
    if (due(gauges, options_.gauges)) SetGauges();
    lock.lock();
    stop_changed_.wait_for(lock, options_.look, [this] { return stop_; });
  }
}

void Housekeeper::Recover() {
  LogIfBad("reclaim_failed", jobs_.ReclaimExpired().status());
  LogIfBad("publish_recovery_failed", CompletePublishes(jobs_, fs_, layout_, identity_));
}

void Housekeeper::Follow() {
  const absl::StatusOr<std::vector<JobEventRecord>> events =
      jobs_.ListEvents("", sequence_, kEventsAtOnce);
  if (!events.ok()) {
    LogWarning("events_failed", {{"error", events.status().ToString()}});
    return;
  }
  if (events->empty()) return;
  bool states_changed = false;
  for (const JobEventRecord& event : *events) {
    Count(event);
    states_changed = states_changed || event.kind == JobEventKind::kStateChanged;
  }
  sequence_ = events->back().sequence;
  if (states_changed) SetGauges();  // a scrape between two rounds must not see an old state
  hub_.PokeAll();
}

void Housekeeper::Count(const JobEventRecord& event) {
  if (event.kind == JobEventKind::kProgress) return;
  const absl::StatusOr<JobRecord> job = jobs_.GetJob(event.job);
  if (!job.ok()) return;  // deleted since
  const std::string& recipe = job->recipe;
  if (event.kind == JobEventKind::kBlockDone) {
    metrics_.Observe(Metric::kBlockSeconds, {recipe}, event.seconds);
  } else if (event.kind == JobEventKind::kAttemptEnded) {
    if (event.end == AttemptEnd::kLeaseLost) metrics_.Add(Metric::kLeasesLost, {});
  } else if (event.kind == JobEventKind::kStateChanged) {
    if (event.state == JobState::kRunning) {
      metrics_.Add(Metric::kAttempts, {recipe});
      if (event.attempt == 1) metrics_.Observe(Metric::kJobQueueWait, {}, event.seconds);
    }
    if (IsTerminal(event.state)) {
      metrics_.Add(Metric::kJobsFinished, {StateLabel(event.state), recipe});
    }
    if (event.state != JobState::kSucceeded) return;
    const absl::StatusOr<ArtifactRecord> artifact = jobs_.GetArtifact(job->artifact_id);
    if (!artifact.ok()) return;
    const auto figure = [&](const char* key, auto use) {
      const auto found = artifact->quality.find(key);
      if (found != artifact->quality.end() && found->is_number()) use(found->get<double>());
    };
    figure("perplexity_ratio", [&](double value) {
      metrics_.Observe(Metric::kArtifactPerplexityRatio, {recipe}, value);
    });
    figure("kl", [&](double value) { metrics_.Observe(Metric::kArtifactKl, {recipe}, value); });
    figure("bits_per_weight",
           [&](double value) { metrics_.Set(Metric::kArtifactBitsPerWeight, {recipe}, value); });
    figure("calibration_tokens",
           [&](double value) { metrics_.Add(Metric::kCalibrationTokens, {recipe}, value); });
  }
}

void Housekeeper::SetGauges() {
  const absl::StatusOr<std::vector<JobStore::Count>> counts = jobs_.CountJobs();
  if (counts.ok()) {
    std::map<std::pair<JobState, std::string>, int64_t> jobs;
    for (const std::string& recipe : RecipeLabels()) {
      for (const JobState state : kStates) jobs[{state, recipe}] = 0;
    }
    for (const JobStore::Count& count : *counts) jobs[{count.state, count.recipe}] = count.jobs;
    for (const auto& [key, number] : jobs) {
      metrics_.Set(Metric::kJobs, {StateLabel(key.first), key.second}, static_cast<double>(number));
    }
  }
  if (const absl::StatusOr<int64_t> free = fs_.FreeBytes(layout_.root); free.ok()) {
    metrics_.Set(Metric::kDiskFree, {}, static_cast<double>(*free));
  }
  if (const absl::StatusOr<int64_t> bytes = jobs_.ArtifactBytes(); bytes.ok()) {
    metrics_.Set(Metric::kArtifactBytes, {}, static_cast<double>(*bytes));
  }
  const int64_t restarts = restarts_();
  metrics_.Add(Metric::kWorkerRestarts, {}, static_cast<double>(restarts - restarts_seen_));
  restarts_seen_ = restarts;
}

}  // namespace nibble
