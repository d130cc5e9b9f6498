// SPDX-License-Identifier: Apache-2.0
#include "services/cli/source_resolver.h"

#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "engine/base/cat.h"
#include "services/common/names.h"
#include "services/quantization/artifacts.h"
#include "services/quantization/service.h"
#include "services/quantization/sqlite_job_store.h"
#include "services/quantization/sqlite_resource_store.h"
#include "services/quantization/store_schema.h"

namespace nibble {
namespace {

constexpr absl::Duration kBusyTimeout = absl::Seconds(10);

// The store of a data directory that another process's service may own.
absl::StatusOr<std::unique_ptr<SqliteDatabase>> OpenStore(const DataLayout& layout,
                                                          const std::string& source) {
  std::error_code error;
  if (!std::filesystem::exists(layout.Database(), error)) {
    return absl::NotFoundError(
        Cat("source \"", source, "\" does not exist: ", layout.root, " holds no job store"));
  }
  return OpenStoreDatabase(layout.Database(), kBusyTimeout, nullptr);
}

}  // namespace

std::string ScratchDirectory(const Settings& settings) { return settings.data_dir + "/serving"; }

absl::StatusOr<ModelSource> SourceResolver::operator()(const std::string& source) const {
  if (source.starts_with("artifacts/")) return Artifact(source);
  if (source.starts_with("models/")) return Model(source);
  return CopyFromRoot(settings_.model_root, source, ScratchDirectory(settings_));
}

absl::StatusOr<ModelSource> SourceResolver::Artifact(const std::string& name) const {
  absl::StatusOr<LocalArtifact> found = [&]() -> absl::StatusOr<LocalArtifact> {
    if (quantization_ != nullptr) return quantization_->ResolveArtifact(name);
    absl::StatusOr<std::string> id = ParseName("source", name, "artifacts");
    if (!id.ok()) return id.status();
    const DataLayout layout{settings_.data_dir};
    absl::StatusOr<std::unique_ptr<SqliteDatabase>> database = OpenStore(layout, name);
    if (!database.ok()) return database.status();
    const Clock clock;
    return ResolveArtifact(*MakeSqliteJobStore(**database, clock, {}), layout, *id);
  }();
  if (!found.ok()) return found.status();
  return ModelSource{found->directory, found->digest, nullptr, found->pin};
}

absl::StatusOr<ModelSource> SourceResolver::Model(const std::string& name) const {
  absl::StatusOr<std::string> found = [&]() -> absl::StatusOr<std::string> {
    if (quantization_ != nullptr) return quantization_->ResolveModel(name);
    absl::StatusOr<std::string> id = ParseName("source", name, "models");
    if (!id.ok()) return id.status();
    const DataLayout layout{settings_.data_dir};
    absl::StatusOr<std::unique_ptr<SqliteDatabase>> database = OpenStore(layout, name);
    if (!database.ok()) return database.status();
    const Clock clock;
    absl::StatusOr<ResourceRecord> record =
        MakeSqliteResourceStore(**database, clock)->GetResource(name);
    if (!record.ok()) return record.status();
    return layout.Source(record->directory);
  }();
  if (!found.ok()) return found.status();
  return ModelSource{*found, "", nullptr, nullptr};
}

}  // namespace nibble
