// SPDX-License-Identifier: Apache-2.0
#include "services/generation/model_registry.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "engine/base/cat.h"
#include "services/common/log.h"

namespace nibble {
namespace {

constexpr int kLifecycleThreads = 4;
constexpr size_t kLifecycleQueue = 256;
constexpr std::chrono::milliseconds kWatchInterval{250};
constexpr double kAliveSeconds = 60;

}  // namespace

ModelRegistry::ModelRegistry(const Settings& settings, Metrics& metrics, Resolver resolver,
                             HealthListener health)
    : settings_(settings),
      metrics_(metrics),
      resolver_(std::move(resolver)),
      health_(std::move(health)),
      lifecycle_(std::make_unique<WorkPool>(kLifecycleThreads, kLifecycleQueue)),
      graveyard_(std::make_unique<WorkPool>(1, kLifecycleQueue)) {
  watcher_ = std::thread([this] { WatchHealth(); });
}

ModelRegistry::~ModelRegistry() {
  Drain(std::chrono::milliseconds(0));
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_changed_.notify_all();
  watcher_.join();
  lifecycle_.reset();
  {
    std::lock_guard lock(mutex_);
    entries_.clear();
  }
  graveyard_.reset();
}

void ModelRegistry::Load(const std::string& name, const ModelSpec& spec, LoadDone done) {
  absl::StatusOr<ServedModelView> answer = absl::UnavailableError("the server is shutting down");
  {
    std::lock_guard lock(mutex_);
    if (!draining_) {
      Entry& entry = entries_[name];
      if (entry.loading != nullptr) {
        if (entry.loading->spec == spec) {
          entry.loading->waiting.push_back(std::move(done));
          return;
        }
        answer = absl::AbortedError(Cat("servedModels/", name, " is being loaded from ",
                                        entry.loading->spec.source,
                                        " or with other options; try again when that is done"));
      } else if (entry.serving != nullptr && entry.serving->spec() == spec) {
        answer = ViewLocked(name, entry);
      } else if (entry.serving == nullptr && !MakeRoomLocked(name)) {
        answer = absl::ResourceExhaustedError(
            Cat("servedModels/", name, " would be model number ", entries_.size(), "; at most ",
                settings_.max_models, " are served (--max-models)"));
        entries_.erase(name);
      } else {
        entry.loading = std::make_unique<Loading>();
        entry.loading->spec = spec;
        entry.loading->waiting.push_back(std::move(done));
        entry.last_spec = spec;
        entry.error.clear();
        if (lifecycle_->TryRun([this, name, spec] { RunLoad(name, spec); })) return;
        done = std::move(entry.loading->waiting.front());
        entry.loading.reset();
        answer = absl::ResourceExhaustedError("too many models are being loaded or unloaded");
      }
    }
  }
  done(answer);
}

// Whether `name`, which has an entry and does not serve, may: the failed loads of other names are
// forgotten first.
bool ModelRegistry::MakeRoomLocked(const std::string& name) {
  const auto most = static_cast<size_t>(settings_.max_models);
  for (auto it = entries_.begin(); it != entries_.end() && entries_.size() > most;) {
    const Entry& entry = it->second;
    const bool failed = entry.serving == nullptr && entry.loading == nullptr && entry.draining == 0;
    it = failed && it->first != name ? entries_.erase(it) : std::next(it);
  }
  return entries_.size() <= most;
}

void ModelRegistry::RunLoad(const std::string& name, const ModelSpec& spec) {
  LogInfo("model_loading", {{"name", name}, {"source", spec.source}});
  absl::StatusOr<std::shared_ptr<ServedModel>> result =
      [&]() -> absl::StatusOr<std::shared_ptr<ServedModel>> {
    absl::StatusOr<ModelSource> source = resolver_(spec.source);
    if (!source.ok()) return source.status();
    absl::StatusOr<std::unique_ptr<ServedModel>> model =
        ServedModel::Load(name, spec, *source, settings_, metrics_);
    if (!model.ok()) return model.status();
    // Whoever lets go of it last may be an RPC's thread: it must not wait for the engine to stop.
    return std::shared_ptr<ServedModel>(model->release(), [this](ServedModel* dead) {
      if (!graveyard_->TryRun([dead] { delete dead; })) delete dead;
    });
  }();
  FinishLoad(name, result);
}

void ModelRegistry::FinishLoad(const std::string& name,
                               const absl::StatusOr<std::shared_ptr<ServedModel>>& result) {
  std::vector<LoadDone> waiting;
  absl::StatusOr<ServedModelView> answer = absl::UnavailableError("the server is shutting down");
  std::shared_ptr<ServedModel> replaced;
  {
    std::lock_guard lock(mutex_);
    Entry& entry = entries_[name];
    waiting = std::move(entry.loading->waiting);
    entry.loading.reset();
    if (result.ok() && draining_) {
      replaced = *result;
    } else if (result.ok()) {
      replaced = std::exchange(entry.serving, *result);
      if (replaced != nullptr) replaced->Export(false);
      entry.serving->Export(true);
      entry.healthy = true;
      answer = ViewLocked(name, entry);
    } else {
      entry.error = std::string(result.status().message());
      answer = result.status();
    }
  }
  const std::string_view outcome = answer.ok() ? "ok" : "failed";
  for (const std::string_view each : {"ok", "failed"}) {  // a rate over nothing is 0, not absent
    metrics_.Add(Metric::kModelLoads, {name, "0", each}, each == outcome ? 1 : 0);
  }
  if (answer.ok()) {
    metrics_.Observe(Metric::kModelLoadSeconds, {name, "0"}, answer->facts.load_seconds);
    health_(name, true);
    LogInfo("model_serving", {{"name", name},
                              {"scheme", answer->facts.scheme},
                              {"kv", answer->facts.kv_format},
                              {"digest", answer->facts.digest},
                              {"seconds", Cat(answer->facts.load_seconds)}});
  } else {
    LogWarning("model_not_loaded",
               {{"name", name}, {"error", std::string(answer.status().message())}});
  }
  if (replaced != nullptr) {
    const auto grace =
        std::chrono::milliseconds(static_cast<int64_t>(settings_.grace_seconds * 1000));
    Retire(name, std::move(replaced), grace, [](const absl::Status&) {});
  }
  for (const LoadDone& done : waiting) done(answer);
}

void ModelRegistry::Unload(const std::string& name, std::chrono::milliseconds grace,
                           UnloadDone done) {
  std::shared_ptr<ServedModel> model;
  absl::Status refused;
  {
    std::lock_guard lock(mutex_);
    const auto it = entries_.find(name);
    if (it == entries_.end()) {
      refused = NoSuchModelLocked(name);
    } else if (it->second.loading != nullptr) {
      refused = absl::AbortedError(
          Cat("servedModels/", name, " is being loaded; try again when that is done"));
    } else if (it->second.serving == nullptr) {
      // What is left of a failed load goes; what drains goes by itself.
      if (it->second.draining == 0) entries_.erase(it);
    } else {
      model = std::exchange(it->second.serving, nullptr);
      model->Export(false);
      it->second.healthy = false;
      it->second.error.clear();
      ++it->second.draining;
      it->second.draining_facts = model->facts();
    }
  }
  if (model == nullptr) {
    done(refused);
    return;
  }
  health_(name, false);
  LogInfo("model_unloading", {{"name", name}});
  Retire(name, std::move(model), grace,
         [this, name, done = std::move(done)](const absl::Status& status) {
           {
             std::lock_guard lock(mutex_);
             const auto it = entries_.find(name);
             if (it != entries_.end() && --it->second.draining == 0 &&
                 it->second.serving == nullptr && it->second.loading == nullptr &&
                 it->second.error.empty()) {
               entries_.erase(it);
             }
           }
           done(status);
         });
}

void ModelRegistry::Retire(const std::string& name, std::shared_ptr<ServedModel> model,
                           std::chrono::milliseconds grace, UnloadDone done) {
  auto work = [name, model = std::move(model), grace, done]() mutable {
    model->engine().Drain(grace);
    // Requests let go of the model as soon as their streams have ended.
    const std::weak_ptr<ServedModel> gone = model;
    model.reset();
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!gone.expired() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    if (!gone.expired()) {
      LogWarning("model_still_held", {{"name", name}});
      done(absl::DeadlineExceededError(
          Cat("servedModels/", name, " serves no more, but a call still holds its memory")));
      return;
    }
    LogInfo("model_gone", {{"name", name}});
    done(absl::OkStatus());
  };
  if (!lifecycle_->TryRun(std::move(work))) {
    done(absl::ResourceExhaustedError("too many models are being loaded or unloaded"));
  }
}

absl::StatusOr<std::shared_ptr<ServedModel>> ModelRegistry::Find(const std::string& name) const {
  std::lock_guard lock(mutex_);
  if (draining_) return absl::UnavailableError("the server is shutting down");
  const auto it = entries_.find(name);
  if (it == entries_.end()) return NoSuchModelLocked(name);
  if (it->second.serving != nullptr) return it->second.serving;
  if (it->second.loading != nullptr) {
    return absl::UnavailableError(Cat("servedModels/", name, " is being loaded"));
  }
  if (it->second.draining > 0) {
    return absl::UnavailableError(Cat("servedModels/", name, " is being unloaded"));
  }
  return absl::UnavailableError(
      Cat("servedModels/", name, " could not be loaded: ", it->second.error));
}

absl::Status ModelRegistry::NoSuchModelLocked(const std::string& name) const {
  std::string known;
  for (const auto& [other, entry] : entries_) {
    if (entry.serving == nullptr) continue;
    known += known.empty() ? other : ", " + other;
  }
  return absl::NotFoundError(
      Cat("servedModels/", name, " does not exist; served are: ", known.empty() ? "none" : known));
}

ServedModelView ModelRegistry::ViewLocked(const std::string& name, const Entry& entry) const {
  ServedModelView view;
  view.name = name;
  view.error = entry.error;
  view.spec = entry.last_spec;
  if (entry.serving != nullptr) {
    view.state = ServedState::kServing;
    view.spec = entry.serving->spec();
    view.facts = entry.serving->facts();
    const EngineStats stats = entry.serving->engine().Stats();
    view.active_requests = stats.running + stats.waiting;
  } else if (entry.loading != nullptr) {
    view.state = ServedState::kLoading;
  } else if (entry.draining > 0) {
    view.state = ServedState::kDraining;
    view.facts = entry.draining_facts;
  } else {
    view.state = ServedState::kFailed;
  }
  return view;
}

absl::StatusOr<ServedModelView> ModelRegistry::Get(const std::string& name) const {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(name);
  if (it == entries_.end()) return NoSuchModelLocked(name);
  return ViewLocked(name, it->second);
}

std::vector<ServedModelView> ModelRegistry::List() const {
  std::lock_guard lock(mutex_);
  std::vector<ServedModelView> views;
  for (const auto& [name, entry] : entries_) views.push_back(ViewLocked(name, entry));
  return views;
}

void ModelRegistry::Drain(std::chrono::milliseconds grace) {
  std::vector<std::shared_ptr<ServedModel>> models;
  {
    std::lock_guard lock(mutex_);
    draining_ = true;
    for (const auto& [name, entry] : entries_) {
      if (entry.serving != nullptr) models.push_back(entry.serving);
    }
  }
  std::vector<std::thread> drains;
  for (const auto& model : models) {
    drains.emplace_back([&model, grace] { model->engine().Drain(grace); });
  }
  for (std::thread& drain : drains) drain.join();
}

absl::Status ModelRegistry::Failure() const {
  std::lock_guard lock(mutex_);
  for (const auto& [name, entry] : entries_) {
    if (entry.serving == nullptr) continue;
    if (absl::Status status = entry.serving->engine().health(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

bool ModelRegistry::Alive() const {
  std::lock_guard lock(mutex_);
  return std::all_of(entries_.begin(), entries_.end(), [](const auto& item) {
    const std::shared_ptr<ServedModel>& model = item.second.serving;
    return model == nullptr || model->engine().Stats().heartbeat_age < kAliveSeconds;
  });
}

void ModelRegistry::WatchHealth() {
  std::unique_lock lock(mutex_);
  while (!stop_changed_.wait_for(lock, kWatchInterval, [this] { return stopping_; })) {
    std::vector<std::pair<std::string, bool>> changes;
    for (auto& [name, entry] : entries_) {
      if (entry.serving == nullptr || draining_) continue;
      const bool healthy = entry.serving->health().ok();
      if (healthy == entry.healthy) continue;
      entry.healthy = healthy;
      changes.emplace_back(name, healthy);
    }
    lock.unlock();
    for (const auto& [name, healthy] : changes) {
      LogWarning(healthy ? "model_healthy" : "model_unhealthy", {{"name", name}});
      health_(name, healthy);
    }
    lock.lock();
  }
}

}  // namespace nibble
