// SPDX-License-Identifier: Apache-2.0
// The served models by name: loading, replacing, unloading, watching their health.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/common/metrics.h"
#include "services/common/settings.h"
#include "services/common/work_pool.h"
#include "services/generation/served_model.h"

namespace nibble {

enum class ServedState : uint8_t { kLoading, kServing, kDraining, kFailed };

// What is known about one name; a copy.
struct ServedModelView {
  std::string name;
  ServedState state = ServedState::kLoading;
  ModelSpec spec;     // of what serves; otherwise of what is loaded
  std::string error;  // why the last load failed
  ModelFacts facts;   // kServing and kDraining
  int32_t active_requests = 0;
};

// Hears of every change of a served model's health: (name, serving). Must not block.
using HealthListener = std::function<void(const std::string& name, bool serving)>;

// Thread-safe; no method blocks unless it says so.
class ModelRegistry {
 public:
  // Finds a source on disk. Called on a thread that may block.
  using Resolver = std::function<absl::StatusOr<ModelSource>(const std::string& source)>;
  using LoadDone = std::function<void(const absl::StatusOr<ServedModelView>&)>;
  using UnloadDone = std::function<void(const absl::Status&)>;

  // All must outlive the registry.
  ModelRegistry(const Settings& settings, Metrics& metrics, Resolver resolver,
                HealthListener health);
  // Drains without grace. Blocks.
  ~ModelRegistry();

  // Loads a model; `done` is called once, on a thread of the registry or on this one. The load does
  // not depend on its caller. See GenerationService.LoadModel for joining and replacing.
  void Load(const std::string& name, const ModelSpec& spec, LoadDone done);
  // Takes the name away at once, lets requests finish for up to `grace`, calls `done` when the
  // memory is free.
  void Unload(const std::string& name, std::chrono::milliseconds grace, UnloadDone done);

  // The model for a new request. Keep it no longer than the request needs the engine.
  // NotFound lists the names that there are; Unavailable if it is loading or draining.
  absl::StatusOr<std::shared_ptr<ServedModel>> Find(const std::string& name) const;

  absl::StatusOr<ServedModelView> Get(const std::string& name) const;
  std::vector<ServedModelView> List() const;  // by name

  // Refuses new requests and loads from now on, lets running ones finish for up to `grace`. Blocks.
  void Drain(std::chrono::milliseconds grace);

  // Why an engine can no longer work; then the process should end and be started again.
  absl::Status Failure() const;
  // Whether every engine's thread shows signs of life.
  bool Alive() const;

 private:
  struct Loading {
    ModelSpec spec;
    std::vector<LoadDone> waiting;
  };
  struct Entry {
    std::shared_ptr<ServedModel> serving;
    std::unique_ptr<Loading> loading;
    int draining = 0;  // models that used to serve under this name and still finish requests
    ModelFacts draining_facts;
    ModelSpec last_spec;
    std::string error;
    bool healthy = false;  // as last told to the listener
  };

  bool MakeRoomLocked(const std::string& name);
  void RunLoad(const std::string& name, const ModelSpec& spec);
  void FinishLoad(const std::string& name,
                  const absl::StatusOr<std::shared_ptr<ServedModel>>& model);
  void Retire(const std::string& name, std::shared_ptr<ServedModel> model,
              std::chrono::milliseconds grace, UnloadDone done);
  ServedModelView ViewLocked(const std::string& name, const Entry& entry) const;
  absl::Status NoSuchModelLocked(const std::string& name) const;
  void WatchHealth();

  const Settings& settings_;
  Metrics& metrics_;
  const Resolver resolver_;
  const HealthListener health_;

  mutable std::mutex mutex_;
  std::map<std::string, Entry> entries_;
  bool draining_ = false;
  bool stopping_ = false;
  std::condition_variable stop_changed_;
  std::thread watcher_;
  std::unique_ptr<WorkPool> lifecycle_;  // loads and drains
  std::unique_ptr<WorkPool> graveyard_;  // where models die, never on an engine's or RPC's thread
};

}  // namespace nibble
