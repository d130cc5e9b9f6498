// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/manifest.h"

#include <algorithm>
#include <set>
#include <utility>

#include "engine/artifact/file_system.h"
#include "engine/base/cat.h"
#include "engine/base/json.h"
#include "engine/base/read_file.h"

namespace nibble {
namespace {

using nlohmann::json;

constexpr int64_t kMaxManifestBytes = int64_t{64} << 20;

absl::Status Wrong(std::string_view field, const json& value, std::string_view allowed) {
  return absl::InvalidArgumentError(
      Cat(kManifestFile, ": ", field, " is ", ShownJson(value), ", must be ", allowed));
}

bool IsHexDigest(std::string_view text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

bool IsPlainName(std::string_view name) {
  return !name.empty() && name[0] != '.' && name.size() <= 255 &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos &&
         name.find('\n') == std::string_view::npos;
}

absl::Status ReadText(const json& object, const char* key, std::string& out) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) {
    return Wrong(key, found == object.end() ? json() : *found, "a string");
  }
  out = found->get<std::string>();
  return absl::OkStatus();
}

absl::Status ReadNumber(const json& object, const char* key, double& out) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) {
    return Wrong(key, found == object.end() ? json() : *found, "a number");
  }
  out = found->get<double>();
  return absl::OkStatus();
}

absl::Status ReadFiles(const json& object, std::vector<WrittenFile>& out) {
  const auto files = object.find("files");
  if (files == object.end() || !files->is_object() || files->empty()) {
    return Wrong("files", files == object.end() ? json() : *files, "an object that is not empty");
  }
  for (const auto& [name, value] : files->items()) {
    const auto bytes = value.is_object() ? value.find("bytes") : value.end();
    const auto sha256 = value.is_object() ? value.find("sha256") : value.end();
    if (!IsPlainName(name) || name == kManifestFile || !value.is_object() || bytes == value.end() ||
        !bytes->is_number_unsigned() || sha256 == value.end() || !sha256->is_string() ||
        !IsHexDigest(sha256->get_ref<const std::string&>())) {
      return Wrong(Cat("files.", name), value,
                   "{\"bytes\": count, \"sha256\": 64 hex digits} under a plain file name");
    }
    out.push_back({name, bytes->get<int64_t>(), sha256->get<std::string>()});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadManifestText(const std::string& directory) {
  return ReadSmallFile(Cat(directory, "/", kManifestFile), kMaxManifestBytes);
}

absl::StatusOr<Manifest> ParseManifest(std::string_view text, const std::string& directory) {
  absl::StatusOr<json> value = ParseJsonObject(text, Cat(directory, "/", kManifestFile));
  if (!value.ok()) return value.status();
  return ManifestFromJson(*value);
}

std::string DigestOf(std::vector<WrittenFile> files, std::string_view manifest_text) {
  files.push_back({std::string(kManifestFile), 0, Sha256Hex(manifest_text)});
  std::sort(files.begin(), files.end(),
            [](const WrittenFile& a, const WrittenFile& b) { return a.name < b.name; });
  std::string lines;
  for (const WrittenFile& file : files) lines += Cat(file.sha256, "  ", file.name, "\n");
  return Sha256Hex(lines);
}

absl::Status CheckNames(const std::string& directory, const Manifest& manifest) {
  absl::StatusOr<std::vector<std::string>> names = PosixFileSystem().List(directory);
  if (!names.ok()) return names.status();
  std::set<std::string, std::less<>> known = {std::string(kManifestFile)};
  for (const std::string_view name : kUndigestedFiles) known.emplace(name);
  for (const WrittenFile& file : manifest.files) known.insert(file.name);
  for (const std::string& name : *names) {
    // A file that no digest covers could change what the model says.
    if (!known.contains(name)) {
      return absl::DataLossError(Cat(directory, "/", name, ": is not listed in ", kManifestFile));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckFile(const std::string& path, const WrittenFile& file,
                       const std::function<absl::Status()>& keep_going) {
  absl::StatusOr<int64_t> size = PosixFileSystem().Size(path);
  if (!size.ok()) return absl::DataLossError(size.status().message());
  if (*size != file.bytes) {
    return absl::DataLossError(
        Cat(path, ": has ", *size, " bytes, ", kManifestFile, " says ", file.bytes));
  }
  absl::StatusOr<std::string> digest = Sha256OfFile(path, keep_going);
  if (!digest.ok()) return digest.status();
  if (*digest != file.sha256) {
    return absl::DataLossError(
        Cat(path, ": sha256 is ", *digest, ", ", kManifestFile, " says ", file.sha256));
  }
  return absl::OkStatus();
}

}  // namespace

WeightBits CountBits(absl::Span<const ModuleInfo> modules) {
  int64_t weights = 0;
  int64_t bytes = 0;
  int64_t quantized_weights = 0;
  int64_t quantized_bytes = 0;
  for (const ModuleInfo& module : modules) {
    weights += module.rows * module.cols;
    bytes += module.bytes;
    if (!module.quantized) continue;
    quantized_weights += module.rows * module.cols;
    quantized_bytes += module.bytes;
  }
  WeightBits bits;
  if (weights > 0) bits.total = 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
  bits.quantized = quantized_weights > 0 ? 8.0 * static_cast<double>(quantized_bytes) /
                                               static_cast<double>(quantized_weights)
                                         : bits.total;
  return bits;
}

json ManifestToJson(const Manifest& manifest) {
  json files = json::object();
  for (const WrittenFile& file : manifest.files) {
    files[file.name] = {{"bytes", file.bytes}, {"sha256", file.sha256}};
  }
  return {{"format", kArtifactFormat},
          {"recipe", manifest.recipe},
          {"source_digest", manifest.source_digest},
          {"calibration_digest", manifest.calibration_digest},
          {"kv_format", manifest.kv_format},
          {"platform",
           {{"device", manifest.platform.device},
            {"isa", manifest.platform.isa},
            {"blas_core", manifest.platform.blas_core}}},
          {"schemes", manifest.schemes},
          {"bits_per_weight", manifest.bits_per_weight},
          {"total_bits_per_weight", manifest.total_bits_per_weight},
          {"files", files}};
}

absl::StatusOr<Manifest> ManifestFromJson(const json& value) {
  const auto format = value.find("format");
  if (format == value.end() || *format != kArtifactFormat) {
    return Wrong("format", format == value.end() ? json() : *format, Cat(kArtifactFormat));
  }
  Manifest manifest;
  const auto recipe = value.find("recipe");
  if (recipe == value.end() || !recipe->is_object()) {
    return Wrong("recipe", recipe == value.end() ? json() : *recipe, "an object");
  }
  manifest.recipe = *recipe;
  const auto platform = value.find("platform");
  if (platform == value.end() || !platform->is_object()) {
    return Wrong("platform", platform == value.end() ? json() : *platform, "an object");
  }
  const auto schemes = value.find("schemes");
  if (schemes == value.end() || !schemes->is_object()) {
    return Wrong("schemes", schemes == value.end() ? json() : *schemes, "an object");
  }
  for (const auto& [module, name] : schemes->items()) {
    if (!name.is_string() || FindScheme(name.get_ref<const std::string&>()) == nullptr) {
      return Wrong(Cat("schemes.", module), name, "the name of a scheme");
    }
    manifest.schemes[module] = name.get<std::string>();
  }
  for (const absl::Status& status :
       {ReadText(value, "source_digest", manifest.source_digest),
        ReadText(value, "calibration_digest", manifest.calibration_digest),
        ReadText(value, "kv_format", manifest.kv_format),
        ReadText(*platform, "device", manifest.platform.device),
        ReadText(*platform, "isa", manifest.platform.isa),
        ReadText(*platform, "blas_core", manifest.platform.blas_core),
        ReadNumber(value, "bits_per_weight", manifest.bits_per_weight),
        ReadNumber(value, "total_bits_per_weight", manifest.total_bits_per_weight),
        ReadFiles(value, manifest.files)}) {
    if (!status.ok()) return status;
  }
  return manifest;
}

absl::StatusOr<Manifest> ReadManifest(const std::string& directory) {
  absl::StatusOr<std::string> text = ReadManifestText(directory);
  if (!text.ok()) return text.status();
  return ParseManifest(*text, directory);
}

absl::StatusOr<std::string> ArtifactDigest(const std::string& directory) {
  absl::StatusOr<std::string> text = ReadManifestText(directory);
  if (!text.ok()) return text.status();
  absl::StatusOr<Manifest> manifest = ParseManifest(*text, directory);
  if (!manifest.ok()) return manifest.status();
  return DigestOf(manifest->files, *text);
}

absl::StatusOr<std::string> VerifyArtifact(const std::string& directory,
                                           const std::function<absl::Status()>& keep_going) {
  absl::StatusOr<std::string> text = ReadManifestText(directory);
  if (!text.ok()) return text.status();
  absl::StatusOr<Manifest> manifest = ParseManifest(*text, directory);
  if (!manifest.ok()) return absl::DataLossError(manifest.status().message());
  if (absl::Status status = CheckNames(directory, *manifest); !status.ok()) return status;
  for (const WrittenFile& file : manifest->files) {
    absl::Status status = CheckFile(Cat(directory, "/", file.name), file, keep_going);
    if (!status.ok()) return status;
  }
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory);
  if (!checkpoint.ok()) return absl::DataLossError(checkpoint.status().message());
  std::map<std::string, std::string> schemes;
  for (const ModuleInfo& module : (*checkpoint)->modules()) schemes[module.name] = module.scheme;
  if (schemes != manifest->schemes) {
    return absl::DataLossError(
        Cat(directory, ": the schemes of config.json and ", kManifestFile, " differ"));
  }
  return DigestOf(manifest->files, *text);
}

}  // namespace nibble
