// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>

namespace nibble {

// The few figures of a report.json that artifacts are listed with: "bits_per_weight",
// "total_bits_per_weight", and if the job evaluated "perplexity", "perplexity_ratio", "kl" and
// "same_top" of mode fast, which serves; "calibration_tokens" if it calibrated. What the report
// lacks is left out.
nlohmann::json QualityFromReport(const nlohmann::json& report);

}  // namespace nibble
