// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdlib>
#include <string>

#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/base/cat.h"
#include "engine/quant/pipeline.h"

namespace nibble {
namespace {

struct Term {
  std::string_view prefix;
  double Gate::*bound;
  double low;
  double high;
  std::string_view range;
};

// clang-format off
constexpr Term kTerms[] = {
    {"ppl<=", &Gate::max_perplexity_ratio, 0.5, 1000, "a ratio from 0.5 to 1000"},
    {"kl<=",  &Gate::max_kl,               0,   1000, "nats per token above 0, up to 1000"},
    {"top>=", &Gate::min_same_top,         0,   1,    "a fraction above 0, up to 1"},
};
// clang-format on

}  // namespace

absl::StatusOr<Gate> ParseGate(std::string_view expression) {
  Gate gate;
  std::string text;
  for (const char c : expression) {
    if (c != ' ') text += c;
  }
  if (text.empty()) return gate;
  for (const std::string& part : std::vector<std::string>(absl::StrSplit(text, ','))) {
    const Term* term = nullptr;
    for (const Term& candidate : kTerms) {
      if (part.compare(0, candidate.prefix.size(), candidate.prefix) == 0) term = &candidate;
    }
    if (term == nullptr) {
      return absl::InvalidArgumentError(
          Cat("gate: '", part, "' is not one of ppl<=RATIO, kl<=NATS, top>=FRACTION"));
    }
    const std::string number = part.substr(term->prefix.size());
    char* end = nullptr;
    const double value = std::strtod(number.c_str(), &end);
    if (number.empty() || *end != '\0' || !std::isfinite(value) || value <= 0 ||
        value < term->low || value > term->high) {
      return absl::InvalidArgumentError(
          Cat("gate: the bound in '", part, "' must be ", term->range));
    }
    if (gate.*term->bound != 0) {
      return absl::InvalidArgumentError(Cat("gate: '", part, "' is the second bound of its kind"));
    }
    gate.*term->bound = value;
  }
  return gate;
}

}  // namespace nibble
