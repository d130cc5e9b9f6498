// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/sweeper.h"

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "services/quantization/status_macros.h"

namespace nibble {
namespace {

absl::Status SweepSources(ResourceStore& resources, FileSystem& fs, const DataLayout& layout) {
  // The directory is listed first: what appears later was named before.
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> names, fs.List(layout.Sources()));
  NIBBLE_ASSIGN_OR_RETURN(const std::set<std::string> used, resources.SourceDirectories());
  for (const std::string& name : names) {
    if (used.count(name) == 0) NIBBLE_RETURN_IF_ERROR(fs.RemoveTree(layout.Source(name)));
  }
  return absl::OkStatus();
}

// Removes the entries of an attempt's directory that no checkpoint's file is in.
absl::Status SweepAttempt(FileSystem& fs, const DataLayout& layout, const std::string& job,
                          const std::string& attempt, const std::set<std::string>& named) {
  const std::string directory = absl::StrCat(layout.Job(job), "/", attempt);
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> entries, fs.List(directory));
  bool empty = true;
  for (const std::string& entry : entries) {
    const std::string path = absl::StrCat(attempt, "/", entry);
    // The first named file at or after the path shows whether one is beneath it.
    const auto file = named.lower_bound(path);
    const bool needed =
        file != named.end() && (*file == path || absl::StartsWith(*file, absl::StrCat(path, "/")));
    if (needed) {
      empty = false;
    } else {
      NIBBLE_RETURN_IF_ERROR(fs.RemoveTree(absl::StrCat(directory, "/", entry)));
    }
  }
  return empty ? fs.RemoveTree(directory) : absl::OkStatus();
}

absl::Status SweepJob(JobStore& jobs, FileSystem& fs, const DataLayout& layout,
                      const std::string& id) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> entries, fs.List(layout.Job(id)));
  const absl::StatusOr<JobRecord> job = jobs.GetJob(id);
  if (absl::IsNotFound(job.status())) return fs.RemoveTree(layout.Job(id));
  NIBBLE_RETURN_IF_ERROR(job.status());
  std::set<std::string> named;
  if (!IsTerminal(job->state)) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<PipelineCheckpoint> checkpoints,
                            jobs.Checkpoints(id));
    for (const PipelineCheckpoint& checkpoint : checkpoints) {
      named.insert(checkpoint.files.begin(), checkpoint.files.end());
    }
  }
  // An attempt that began after the job was read has a number that was not listed, or is this one.
  const bool leased = job->state == JobState::kRunning || job->state == JobState::kPublishing;
  for (const std::string& entry : entries) {
    if (!absl::StartsWith(entry, "attempt-")) continue;
    if (leased && entry == DataLayout::AttemptName(job->attempt)) continue;
    // A publish that was taken over still renames from the attempt that staged it.
    if (absl::StrContains(job->staged, absl::StrCat("/", entry, "/"))) continue;
    NIBBLE_RETURN_IF_ERROR(SweepAttempt(fs, layout, id, entry, named));
  }
  return absl::OkStatus();
}

absl::Status SweepJobs(JobStore& jobs, FileSystem& fs, const DataLayout& layout) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> ids, fs.List(layout.Jobs()));
  for (const std::string& id : ids) NIBBLE_RETURN_IF_ERROR(SweepJob(jobs, fs, layout, id));
  return absl::OkStatus();
}

absl::Status SweepArtifacts(JobStore& jobs, FileSystem& fs, const DataLayout& layout) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> digests, fs.List(layout.Artifacts()));
  for (const std::string& digest : digests) {
    NIBBLE_RETURN_IF_ERROR(jobs.DoomIfOrphan(digest).status());
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> doomed, jobs.ListDoomed());
  for (const std::string& digest : doomed) {
    NIBBLE_RETURN_IF_ERROR(fs.RemoveTree(layout.Artifact(digest)));
    NIBBLE_RETURN_IF_ERROR(fs.SyncDirectory(layout.Artifacts()));
    NIBBLE_RETURN_IF_ERROR(jobs.FinishDelete(digest));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Sweep(JobStore& jobs, ResourceStore& resources, FileSystem& fs,
                   const DataLayout& layout, const Clock& clock) {
  absl::Status result;
  result.Update(resources.DeleteExpiredUploads(clock.Now()));
  result.Update(SweepSources(resources, fs, layout));
  result.Update(SweepJobs(jobs, fs, layout));
  result.Update(SweepArtifacts(jobs, fs, layout));
  return result;
}

}  // namespace nibble
