// SPDX-License-Identifier: Apache-2.0
// nibble.json: what an artifact is made of, and what identifies it. docs/artifact.md describes it
// field by field.
#pragma once

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/artifact/checkpoint.h"
#include "engine/artifact/safetensors_writer.h"

namespace nibble {

inline constexpr std::string_view kManifestFile = "nibble.json";
inline constexpr int kArtifactFormat = 1;

// Files of an artifact that say how it came about, not what it is: they are in no digest.
inline constexpr std::string_view kUndigestedFiles[] = {"report.html", "report.json", "run.json"};

// Where an artifact was computed. Results differ in the last bits between these.
struct Platform {
  std::string device;     // "cpu", "cuda"
  std::string isa;        // "scalar", "avx2", "avx512", ...
  std::string blas_core;  // OpenBLAS's name of the core, "" without BLAS
};

struct Manifest {
  nlohmann::json recipe;           // canonical, Recipe::ToJson()
  std::string source_digest;       // SourceDigest() of the model it was made of
  std::string calibration_digest;  // hex sha256 of the calibration file, "" if none was used
  std::string kv_format = "bf16";
  Platform platform;
  std::map<std::string, std::string> schemes;  // module -> scheme name
  double bits_per_weight = 0;                  // see WeightBits
  double total_bits_per_weight = 0;
  std::vector<WrittenFile> files;  // every digested file except nibble.json, by name
};

// Bits for each logical weight, from 8 x bytes of every stored tensor (codes, scales, zero points,
// shapes) of the modules.
struct WeightBits {
  double quantized = 0;  // of the quantized modules; of all where none is quantized
  double total = 0;      // of all modules, embedding and head included
};
WeightBits CountBits(absl::Span<const ModuleInfo> modules);

nlohmann::json ManifestToJson(const Manifest& manifest);
absl::StatusOr<Manifest> ManifestFromJson(const nlohmann::json& json);

// NotFound if the directory has no nibble.json (then it is no artifact of ours).
absl::StatusOr<Manifest> ReadManifest(const std::string& directory);

// What identifies an artifact: the sha256 over a line "SHA256  NAME\n" for each digested file and
// nibble.json, sorted by name in byte order. Trusts the digests in nibble.json.
absl::StatusOr<std::string> ArtifactDigest(const std::string& directory);

// Opens the artifact with the reader that serving uses, reads every file and compares it with
// nibble.json. Returns the digest; DataLoss naming the file that is damaged, missing or not listed.
absl::StatusOr<std::string> VerifyArtifact(
    const std::string& directory, const std::function<absl::Status()>& keep_going = nullptr);

}  // namespace nibble
