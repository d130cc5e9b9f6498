// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/sqlite_artifacts.h"

#include <utility>

#include "engine/base/cat.h"
#include "services/quantization/status_macros.h"

namespace nibble {
namespace {

// In the order that ReadArtifact reads them.
#define ARTIFACT_COLUMNS                                                                \
  "id, digest, bytes, scheme, recipe, kv_format, quality, job, source, source_digest, " \
  "tenant, creator, create_time, number"

// Returns the artifact's number, which orders lists.
int64_t ReadArtifact(Query& row, ArtifactRecord& artifact) {
  artifact.id = row.Text();
  artifact.digest = row.Text();
  artifact.bytes = row.Int();
  artifact.scheme = row.Text();
  artifact.recipe = row.Text();
  artifact.kv_format = row.Text();
  artifact.quality = nlohmann::json::parse(row.Text(), nullptr, /*allow_exceptions=*/false);
  artifact.job = row.Text();
  artifact.source = row.Text();
  artifact.source_digest = row.Text();
  artifact.tenant = row.Text();
  artifact.creator = row.Text();
  artifact.create_time = row.Time();
  return row.Int();
}

}  // namespace

absl::StatusOr<ArtifactRecord> SqliteArtifacts::Get(const std::string& id) {
  std::optional<ArtifactRecord> artifact;
  NIBBLE_RETURN_IF_ERROR(db_.Each(
      "SELECT " ARTIFACT_COLUMNS " FROM artifacts WHERE id = ?",
      [&](Query& row) { ReadArtifact(row, artifact.emplace()); }, id));
  if (!artifact.has_value()) {
    return absl::NotFoundError(Cat("there is no artifacts/", id));
  }
  return *std::move(artifact);
}

absl::StatusOr<ArtifactPage> SqliteArtifacts::List(const std::string& tenant, int32_t limit,
                                                   int64_t before) {
  ArtifactPage page;
  int64_t number = 0;
  NIBBLE_RETURN_IF_ERROR(db_.Each(
      "SELECT " ARTIFACT_COLUMNS
      " FROM artifacts WHERE (?1 = '' OR tenant = ?1) AND (?2 = 0 OR number < ?2) "
      "ORDER BY number DESC LIMIT ?3",
      [&](Query& row) { number = ReadArtifact(row, page.artifacts.emplace_back()); }, tenant,
      before, limit));
  if (static_cast<int32_t>(page.artifacts.size()) == limit) page.next = number;
  return page;
}

absl::StatusOr<int64_t> SqliteArtifacts::Bytes() {
  return db_.Integer(
      "SELECT COALESCE(SUM(bytes), 0) FROM "
      "(SELECT MAX(bytes) AS bytes FROM artifacts GROUP BY digest)");
}

absl::StatusOr<std::optional<std::string>> SqliteArtifacts::Delete(const std::string& id) {
  NIBBLE_ASSIGN_OR_RETURN(const ArtifactRecord artifact, Get(id));
  NIBBLE_RETURN_IF_ERROR(db_.Run("DELETE FROM artifacts WHERE id = ?", id).status());
  NIBBLE_ASSIGN_OR_RETURN(const bool orphan, DoomIfOrphan(artifact.digest));
  return orphan ? std::make_optional(artifact.digest) : std::nullopt;
}

absl::StatusOr<bool> SqliteArtifacts::DoomIfOrphan(const std::string& digest) {
  NIBBLE_ASSIGN_OR_RETURN(
      const int64_t users,
      db_.Integer("SELECT (SELECT COUNT(*) FROM artifacts WHERE digest = ?1) + "
                  "(SELECT COUNT(*) FROM jobs WHERE artifact_digest = ?1 AND state = ?2)",
                  digest, JobState::kPublishing));
  if (users != 0) return false;
  NIBBLE_RETURN_IF_ERROR(
      db_.Run("INSERT OR IGNORE INTO doomed (digest) VALUES (?)", digest).status());
  return true;
}

absl::StatusOr<std::vector<std::string>> SqliteArtifacts::ListDoomed() {
  std::vector<std::string> digests;
  NIBBLE_RETURN_IF_ERROR(db_.Each("SELECT digest FROM doomed ORDER BY digest",
                                  [&](Query& row) { digests.push_back(row.Text()); }));
  return digests;
}

absl::Status SqliteArtifacts::FinishDelete(const std::string& digest) {
  return db_.Run("DELETE FROM doomed WHERE digest = ?", digest).status();
}

absl::StatusOr<bool> SqliteArtifacts::IsDoomed(const std::string& digest) {
  NIBBLE_ASSIGN_OR_RETURN(const int64_t doomed,
                          db_.Integer("SELECT COUNT(*) FROM doomed WHERE digest = ?", digest));
  return doomed != 0;
}

absl::StatusOr<int64_t> SqliteArtifacts::Add(const Lease& lease) {
  return db_.Run(
      "INSERT INTO artifacts (id, digest, bytes, scheme, recipe, kv_format, quality, job, "
      "source, source_digest, tenant, creator, create_time) "
      "SELECT artifact_id, artifact_digest, artifact_bytes, scheme, recipe, kv_format, quality, "
      "id, source, source_digest, tenant, creator, ? FROM jobs "
      "WHERE id = ? AND attempt = ? AND state = ?",
      clock_.Now(), lease.job, lease.attempt, JobState::kPublishing);
}

}  // namespace nibble
