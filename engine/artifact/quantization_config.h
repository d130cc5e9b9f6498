// SPDX-License-Identifier: Apache-2.0
// config.json's "quantization_config" in the dialect of compressed-tensors: which module is stored
// in which scheme. Source: vllm-project/compressed-tensors, quantization/quant_config.py,
// quant_args.py and utils/match.py.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/scheme.h"

namespace nibble {

// The class that torch gives a module of a decoder: targets may name it.
std::string_view ModuleClass(std::string_view module);  // "Embedding" or "Linear"

// Immutable and thread-safe.
class QuantizationConfig {
 public:
  QuantizationConfig() = default;  // nothing is quantized

  // InvalidArgument naming field and value; Unimplemented for another quant_method and for a
  // combination of bits, type, strategy, group size, symmetry, activations and format that is no
  // row of kSchemes, naming it.
  static absl::StatusOr<QuantizationConfig> Parse(const nlohmann::json& section);

  // The scheme of a module, nullptr if it is stored plain. An exact name wins over a regular
  // expression ("re:", anchored at the start), that over a class; "ignore" wins over all.
  // ResourceExhausted if an expression takes too long on this name.
  absl::StatusOr<const Scheme*> SchemeOf(std::string_view module) const;

 private:
  struct Pattern;
  struct Target {
    std::shared_ptr<const Pattern> pattern;
    const Scheme* scheme;
  };
  std::map<std::string, const Scheme*, std::less<>> named_;
  std::vector<Target> targets_;  // classes and regular expressions
  std::set<std::string, std::less<>> ignored_names_;
  std::vector<std::shared_ptr<const Pattern>> ignored_;  // classes and regular expressions
};

// The scheme of every linear and of the embedding of a model, quantized or not, by module name. A
// tied head is absent.
using ModuleSchemes = std::map<std::string, const Scheme*, std::less<>>;

// The section for a model stored so. One group per quantized scheme, in the order of kSchemes. A
// group targets "Linear" if all quantized linears share its scheme, and names its modules
// otherwise; "ignore" lists the linears that are not quantized, a tied head among them. JSON null
// if nothing is quantized.
nlohmann::json BuildQuantizationConfig(const ModuleSchemes& modules);

}  // namespace nibble
