// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/sqlite_resource_store.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/quantization/job_store.h"
#include "services/quantization/status_macros.h"

namespace nibble {

int64_t ResourceRecord::bytes() const {
  int64_t sum = 0;
  for (const FileRecord& file : files) sum += file.bytes;
  return sum;
}

namespace {

#define RESOURCE_COLUMNS \
  "name, kind, tenant, creator, digest, directory, files, create_time, number"

int64_t ReadResource(Query& row, ResourceRecord& resource) {
  resource.name = row.Text();
  resource.kind = static_cast<ResourceKind>(row.Int());
  resource.tenant = row.Text();
  resource.creator = row.Text();
  resource.digest = row.Text();
  resource.directory = row.Text();
  for (const nlohmann::json& file : nlohmann::json::parse(row.Text())) {
    resource.files.push_back({file.at(0), file.at(1), file.at(2), 0});
  }
  resource.create_time = row.Time();
  return row.Int();
}

class SqliteResourceStore : public ResourceStore {
 public:
  SqliteResourceStore(SqliteDatabase& database, const Clock& clock)
      : db_(database), clock_(clock) {}

  absl::Status CreateUpload(const UploadRecord& upload, const UploadQuota& quota) override {
    int64_t bytes = 0;
    for (const FileRecord& file : upload.files) bytes += file.bytes;
    return db_.Write([&]() -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(
          const int64_t taken,
          db_.Integer("SELECT (SELECT COUNT(*) FROM resources WHERE name = ?1) + "
                      "(SELECT COUNT(*) FROM uploads WHERE resource = ?1 AND state = ?2)",
                      upload.resource, UploadState::kActive));
      if (taken != 0) {
        return absl::AlreadyExistsError(absl::StrCat(
            "resource_id: ", upload.resource, " exists, or an unfinished upload will become it"));
      }
      NIBBLE_ASSIGN_OR_RETURN(
          const int64_t active,
          db_.Integer("SELECT COUNT(*) FROM uploads WHERE tenant = ? AND creator = ? AND state = ?",
                      upload.tenant, upload.creator, UploadState::kActive));
      if (active >= quota.uploads) {
        return absl::ResourceExhaustedError(absl::StrCat("caller '", upload.creator, "' has ",
                                                         active, " unfinished uploads; at most ",
                                                         quota.uploads, " are allowed"));
      }
      NIBBLE_ASSIGN_OR_RETURN(
          const int64_t held,
          db_.Integer("SELECT (SELECT COALESCE(SUM(bytes), 0) FROM resources "
                      "WHERE tenant = ?1 AND creator = ?2) + "
                      "(SELECT COALESCE(SUM(f.bytes), 0) FROM upload_files f JOIN uploads u "
                      "ON u.id = f.upload WHERE u.tenant = ?1 AND u.creator = ?2 AND u.state = ?3)",
                      upload.tenant, upload.creator, UploadState::kActive));
      if (bytes > quota.bytes - held) {
        return absl::ResourceExhaustedError(absl::StrCat("files: ", bytes, " bytes; caller '",
                                                         upload.creator, "' holds ", held, " of ",
                                                         quota.bytes, " bytes of its quota"));
      }
      NIBBLE_RETURN_IF_ERROR(
          db_.Run("INSERT INTO uploads (id, tenant, creator, kind, state, resource, create_time, "
                  "expire_time) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                  upload.id, upload.tenant, upload.creator, upload.kind, UploadState::kActive,
                  upload.resource, upload.create_time, upload.expire_time)
              .status());
      int64_t position = 0;
      for (const FileRecord& file : upload.files) {
        NIBBLE_RETURN_IF_ERROR(
            db_.Run("INSERT INTO upload_files (upload, position, name, bytes, sha256) "
                    "VALUES (?, ?, ?, ?, ?)",
                    upload.id, position++, file.name, file.bytes, file.sha256)
                .status());
      }
      return absl::OkStatus();
    });
  }

  absl::StatusOr<UploadRecord> GetUpload(const std::string& id) override {
    const std::lock_guard lock(db_.mutex());
    return FindUpload(id);
  }

  absl::StatusOr<std::vector<UploadRecord>> ListUploads(const std::string& tenant, int32_t limit,
                                                        int64_t before) override {
    std::vector<std::string> ids;
    const std::lock_guard lock(db_.mutex());
    NIBBLE_RETURN_IF_ERROR(db_.Each(
        "SELECT id FROM uploads WHERE state = ?1 AND (?2 = '' OR tenant = ?2) "
        "AND (?3 = 0 OR number < ?3) ORDER BY number DESC LIMIT ?4",
        [&](Query& row) { ids.push_back(row.Text()); }, UploadState::kActive, tenant, before,
        limit));
    std::vector<UploadRecord> uploads;
    for (const std::string& id : ids) {
      NIBBLE_ASSIGN_OR_RETURN(UploadRecord upload, FindUpload(id));
      uploads.push_back(std::move(upload));
    }
    return uploads;
  }

  absl::Status DeleteExpiredUploads(absl::Time now) override {
    return db_.Write(
        [&] { return db_.Run("DELETE FROM uploads WHERE expire_time <= ?", now).status(); });
  }

  absl::Status RecordSynced(const std::string& id, const std::string& file, int64_t synced,
                            absl::Time expire_time) override {
    return db_.Write([&]() -> absl::Status {
      NIBBLE_RETURN_IF_ERROR(FindActive(id).status());
      NIBBLE_RETURN_IF_ERROR(
          db_.Run("UPDATE uploads SET expire_time = ? WHERE id = ?", expire_time, id).status());
      return db_
          .Run("UPDATE upload_files SET synced = ? WHERE upload = ? AND name = ?", synced, id, file)
          .status();
    });
  }

  absl::StatusOr<ResourceRecord> FinishUpload(const std::string& id,
                                              const std::string& digest) override {
    std::string name;
    NIBBLE_RETURN_IF_ERROR(db_.Write([&]() -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(UploadRecord upload, FindActive(id));
      name = upload.resource;
      std::sort(upload.files.begin(), upload.files.end(),
                [](const FileRecord& a, const FileRecord& b) { return a.name < b.name; });
      nlohmann::json files = nlohmann::json::array();
      int64_t bytes = 0;
      for (const FileRecord& file : upload.files) {
        if (file.synced_bytes != file.bytes) {
          return absl::FailedPreconditionError(absl::StrCat("uploads/", id, ": file '", file.name,
                                                            "' has ", file.synced_bytes, " of ",
                                                            file.bytes, " bytes"));
        }
        files.push_back({file.name, file.bytes, file.sha256});
        bytes += file.bytes;
      }
      NIBBLE_RETURN_IF_ERROR(
          db_.Run("INSERT INTO resources (name, kind, tenant, creator, digest, directory, bytes, "
                  "files, create_time) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                  upload.resource, upload.kind, upload.tenant, upload.creator, digest, id, bytes,
                  files.dump(), clock_.Now())
              .status());
      return db_.Run("UPDATE uploads SET state = ? WHERE id = ?", UploadState::kFinished, id)
          .status();
    }));
    return GetResource(name);
  }

  absl::Status DeleteUpload(const std::string& id) override {
    return db_.Write([&]() -> absl::Status {
      NIBBLE_RETURN_IF_ERROR(FindUpload(id).status());
      return db_.Run("DELETE FROM uploads WHERE id = ?", id).status();
    });
  }

  absl::StatusOr<ResourceRecord> GetResource(const std::string& name) override {
    std::optional<ResourceRecord> resource;
    const std::lock_guard lock(db_.mutex());
    NIBBLE_RETURN_IF_ERROR(db_.Each(
        "SELECT " RESOURCE_COLUMNS " FROM resources WHERE name = ?",
        [&](Query& row) { ReadResource(row, resource.emplace()); }, name));
    if (!resource.has_value()) return absl::NotFoundError(absl::StrCat("there is no ", name));
    return *std::move(resource);
  }

  absl::StatusOr<ResourcePage> ListResources(ResourceKind kind, const std::string& tenant,
                                             const std::string& digest, int32_t limit,
                                             int64_t before) override {
    ResourcePage page;
    int64_t number = 0;
    const std::lock_guard lock(db_.mutex());
    NIBBLE_RETURN_IF_ERROR(db_.Each(
        "SELECT " RESOURCE_COLUMNS
        " FROM resources WHERE kind = ?1 AND (?2 = '' OR tenant = ?2) AND (?3 = '' OR digest = ?3) "
        "AND (?4 = 0 OR number < ?4) ORDER BY number DESC LIMIT ?5",
        [&](Query& row) { number = ReadResource(row, page.resources.emplace_back()); }, kind,
        tenant, digest, before, limit));
    if (static_cast<int32_t>(page.resources.size()) == limit) page.next = number;
    return page;
  }

  absl::Status DeleteResource(const std::string& name) override {
    return db_.Write([&]() -> absl::Status {
      std::string user;
      NIBBLE_RETURN_IF_ERROR(db_.Each(
          "SELECT id FROM job_resources JOIN jobs ON jobs.id = job_resources.job "
          "WHERE resource = ? AND state <= ? LIMIT 1",
          [&](Query& row) { user = row.Text(); }, name, JobState::kPublishing));
      if (!user.empty()) {
        return absl::FailedPreconditionError(
            absl::StrCat(name, " is used by jobs/", user, ", which has not ended"));
      }
      NIBBLE_ASSIGN_OR_RETURN(const int64_t removed,
                              db_.Run("DELETE FROM resources WHERE name = ?", name));
      if (removed == 0) return absl::NotFoundError(absl::StrCat("there is no ", name));
      return absl::OkStatus();
    });
  }

  absl::StatusOr<std::set<std::string>> SourceDirectories() override {
    std::set<std::string> directories;
    const std::lock_guard lock(db_.mutex());
    NIBBLE_RETURN_IF_ERROR(db_.Each(
        "SELECT id FROM uploads WHERE state = ? UNION SELECT directory FROM resources",
        [&](Query& row) { directories.insert(row.Text()); }, UploadState::kActive));
    return directories;
  }

 private:
  // Both run under the database's mutex.
  absl::StatusOr<UploadRecord> FindUpload(const std::string& id) {
    UploadRecord upload;
    NIBBLE_RETURN_IF_ERROR(db_.Each(
        "SELECT number, id, tenant, creator, kind, state, resource, create_time, expire_time "
        "FROM uploads WHERE id = ?",
        [&](Query& row) {
          upload.number = row.Int();
          upload.id = row.Text();
          upload.tenant = row.Text();
          upload.creator = row.Text();
          upload.kind = static_cast<ResourceKind>(row.Int());
          upload.state = static_cast<UploadState>(row.Int());
          upload.resource = row.Text();
          upload.create_time = row.Time();
          upload.expire_time = row.Time();
        },
        id));
    if (upload.id.empty()) return absl::NotFoundError(absl::StrCat("there is no uploads/", id));
    NIBBLE_RETURN_IF_ERROR(db_.Each(
        "SELECT name, bytes, sha256, synced FROM upload_files WHERE upload = ? ORDER BY position",
        [&](Query& row) {
          FileRecord& file = upload.files.emplace_back();
          file.name = row.Text();
          file.bytes = row.Int();
          file.sha256 = row.Text();
          file.synced_bytes = row.Int();
        },
        id));
    return upload;
  }

  absl::StatusOr<UploadRecord> FindActive(const std::string& id) {
    NIBBLE_ASSIGN_OR_RETURN(UploadRecord upload, FindUpload(id));
    if (upload.state != UploadState::kActive) {
      return absl::FailedPreconditionError(
          absl::StrCat("uploads/", id, " is finished; it became ", upload.resource));
    }
    return upload;
  }

  SqliteDatabase& db_;
  const Clock& clock_;
};

}  // namespace

std::unique_ptr<ResourceStore> MakeSqliteResourceStore(SqliteDatabase& database,
                                                       const Clock& clock) {
  return std::make_unique<SqliteResourceStore>(database, clock);
}

}  // namespace nibble
