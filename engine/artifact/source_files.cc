// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/source_files.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "engine/artifact/hf_checkpoint.h"
#include "engine/artifact/sha256.h"
#include "engine/base/cat.h"

namespace nibble {
namespace {

namespace stdfs = std::filesystem;

bool IsFile(const std::string& path) {
  std::error_code error;
  return stdfs::is_regular_file(path, error);
}

// The GGUF files in a directory, names only.
std::vector<std::string> GgufNames(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (stdfs::directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.ends_with(".gguf")) names.push_back(name);
  }
  return names;
}

}  // namespace

absl::StatusOr<SourceFiles> ListSourceFiles(const std::string& path) {
  SourceFiles files;
  std::error_code error;
  if (!stdfs::exists(path, error)) {
    return absl::NotFoundError(Cat(path, ": there is no such model directory or file"));
  }
  if (!stdfs::is_directory(path, error)) {
    const stdfs::path file(path);
    files.directory = file.has_parent_path() ? file.parent_path().string() : ".";
    files.names = {file.filename().string()};
    files.gguf = true;
    return files;
  }
  files.directory = path;
  if (!IsFile(Cat(path, "/config.json"))) {
    files.names = GgufNames(path);
    files.gguf = true;
    if (files.names.size() == 1) return files;
    return absl::NotFoundError(Cat(path, ": has no config.json and ", files.names.size(),
                                   " GGUF files; a model is a "
                                   "directory with config.json and safetensors, or one GGUF file"));
  }
  absl::StatusOr<std::vector<std::string>> weights = HfWeightFiles(path);
  if (!weights.ok()) return weights.status();
  files.names = *std::move(weights);
  files.names.push_back("config.json");
  for (const std::string_view name : kCarriedFiles) {
    if (IsFile(Cat(path, "/", name))) files.names.emplace_back(name);
  }
  std::sort(files.names.begin(), files.names.end());
  return files;
}

absl::StatusOr<std::string> SourceDigest(const std::string& path,
                                         const std::function<absl::Status()>& keep_going) {
  absl::StatusOr<SourceFiles> files = ListSourceFiles(path);
  if (!files.ok()) return files.status();
  std::string lines;
  for (const std::string& name : files->names) {
    absl::StatusOr<std::string> digest = Sha256OfFile(Cat(files->directory, "/", name), keep_going);
    if (!digest.ok()) return digest.status();
    if (files->gguf) return digest;
    lines += Cat(*digest, "  ", name, "\n");
  }
  return Sha256Hex(lines);
}

}  // namespace nibble
