// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/quality.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

// The number at `pointer`, or null.
Json Number(const Json& json, const char* pointer) {
  const Json::json_pointer path(pointer);
  if (!json.contains(path) || !json.at(path).is_number()) return nullptr;
  return json.at(path);
}

}  // namespace

Json QualityFromReport(const Json& report) {
  Json quality = {{"bits_per_weight", Number(report, "/bits_per_weight")},
                  {"total_bits_per_weight", Number(report, "/total_bits_per_weight")},
                  {"perplexity", Number(report, "/evaluation/fast/perplexity")},
                  {"kl", Number(report, "/evaluation/fast/kl")},
                  {"same_top", Number(report, "/evaluation/fast/same_top")},
                  {"calibration_tokens", Number(report, "/calibration/tokens")}};
  const Json baseline = Number(report, "/evaluation/baseline/perplexity");
  if (baseline.is_number() && quality["perplexity"].is_number() && baseline.get<double>() > 0) {
    quality["perplexity_ratio"] = quality["perplexity"].get<double>() / baseline.get<double>();
  }
  for (auto entry = quality.begin(); entry != quality.end();) {
    entry = entry->is_null() ? quality.erase(entry) : std::next(entry);
  }
  return quality;
}

}  // namespace nibble
