// SPDX-License-Identifier: Apache-2.0
// The evidence of a job: how far each layer moved, how large the artifact is, how well it predicts.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/eval/evaluation.h"
#include "engine/quant/block_quantizer.h"
#include "engine/quant/pipeline.h"

namespace nibble {

struct QualityScore {
  double perplexity = 0;
  double nll = 0;
  double kl = 0;        // against the unquantized model
  double same_top = 0;  // against the unquantized model
  int64_t predictions = 0;
};
QualityScore ScoreOf(const Evaluation& evaluation);

struct Report {
  Recipe recipe;
  std::string source_digest;
  std::string calibration_digest;  // "" without calibration
  int64_t calibration_tokens = 0;
  std::string tier;
  std::string backend;  // its description
  std::vector<ModuleError> modules;
  std::vector<double> drift;      // by block; empty without calibration
  int64_t quantized_bytes = 0;    // of every tensor of the quantized modules
  int64_t quantized_weights = 0;  // their logical weights
  int64_t total_bytes = 0;        // of all modules, embedding and head included
  int64_t total_weights = 0;
  bool evaluated = false;
  std::string evaluation_digest;
  QualityScore baseline;  // the unquantized model, exact
  QualityScore exact;
  QualityScore fast;
  Gate gate;
  bool gate_passed = true;
  std::string gate_message;
  // Undigested: differ from attempt to attempt.
  std::map<std::string, double> seconds;  // by phase, of this attempt
  int64_t peak_memory_bytes = 0;
  int32_t resumed_at = 0;

  double bits_per_weight() const;
  double total_bits_per_weight() const;
  nlohmann::json ToJson() const;
  // A page that needs nothing else; every string is escaped.
  std::string ToHtml() const;
};

// Holds the figures of both modes against the bounds: sets gate_passed and gate_message.
void CheckGate(Report& report);

// `text` with &, <, >, " and ' as entities.
std::string EscapeHtml(std::string_view text);

}  // namespace nibble
