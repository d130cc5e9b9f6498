// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "engine/base/cat.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

std::string Number(double value, const char* format = "%.4g") {
  char text[64];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

Json ToJson(const QualityScore& score, bool compared) {
  Json json = {
      {"perplexity", score.perplexity}, {"nll", score.nll}, {"predictions", score.predictions}};
  if (compared) {
    json["kl"] = score.kl;
    json["same_top"] = score.same_top;
  }
  return json;
}

double Ratio(int64_t bytes, int64_t weights) {
  return weights == 0 ? 0.0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
}

std::string Row(const std::vector<std::string>& cells, const char* tag = "td") {
  std::string row = "<tr>";
  for (const std::string& cell : cells) {
    row += Cat("<", tag, ">", EscapeHtml(cell), "</", tag, ">");
  }
  return row + "</tr>\n";
}

constexpr const char* kStyle =
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;"
    "color:#222;background:#fff}table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:left}"
    "td+td{font-variant-numeric:tabular-nums}.bar{background:#4a7ebb;height:.8em}"
    ".ok{color:#186a2e}.failed{color:#a11}code{word-break:break-all}";

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

QualityScore ScoreOf(const Evaluation& evaluation) {
  return {evaluation.perplexity(), evaluation.nll(), evaluation.kl(), evaluation.same_top(),
          evaluation.predictions()};
}

double Report::bits_per_weight() const {
  return quantized_weights > 0 ? Ratio(quantized_bytes, quantized_weights)
                               : total_bits_per_weight();
}
double Report::total_bits_per_weight() const { return Ratio(total_bytes, total_weights); }

Json Report::ToJson() const {
  Json errors = Json::array();
  for (const ModuleError& m : modules) {
    errors.push_back({{"module", m.module},
                      {"scheme", m.scheme},
                      {"relative_error", m.relative_error},
                      {"measured_on", m.of_output ? "output" : "weight"},
                      {"outliers", m.outliers}});
  }
  Json json = {{"recipe", recipe.ToJson()},
               {"source_digest", source_digest},
               {"tier", tier},
               {"backend", backend},
               {"modules", errors},
               {"bits_per_weight", bits_per_weight()},
               {"total_bits_per_weight", total_bits_per_weight()},
               {"quantized_bytes", quantized_bytes},
               {"quantized_weights", quantized_weights},
               {"total_bytes", total_bytes},
               {"total_weights", total_weights},
               {"seconds", seconds},
               {"peak_memory_bytes", peak_memory_bytes},
               {"resumed_at", resumed_at}};
  if (calibration_tokens > 0) {
    json["calibration"] = {{"digest", calibration_digest}, {"tokens", calibration_tokens}};
    json["block_drift"] = drift;
  }
  if (evaluated) {
    json["evaluation"] = {{"digest", evaluation_digest},
                          {"baseline", nibble::ToJson(baseline, false)},
                          {"exact", nibble::ToJson(exact, true)},
                          {"fast", nibble::ToJson(fast, true)}};
    json["gate"] = {{"max_perplexity_ratio", gate.max_perplexity_ratio},
                    {"max_kl", gate.max_kl},
                    {"min_same_top", gate.min_same_top},
                    {"passed", gate_passed},
                    {"message", gate_message}};
  }
  return json;
}

std::string Report::ToHtml() const {
  std::string page = Cat(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width\"><title>Quantization report</title>"
      "<style>",
      kStyle, "</style></head><body>\n<h1>", EscapeHtml(recipe.name), ", ",
      EscapeHtml(recipe.scheme), "</h1>\n");
  if (evaluated) {
    if (gate.max_perplexity_ratio > 0 || gate.max_kl > 0 || gate.min_same_top > 0) {
      page += Cat("<p class=\"", gate_passed ? "ok" : "failed", "\"><b>Gate ",
                  gate_passed ? "passed" : "failed", "</b> ", EscapeHtml(gate_message), "</p>\n");
    }
    page += "<h2>Held-out text</h2>\n<table>\n";
    page += Row({"", "perplexity", "ratio", "KL, nats/token", "same top token"}, "th");
    page += Row({"unquantized", Number(baseline.perplexity), "", "", ""});
    for (const auto& [name, score] :
         {std::pair<std::string, const QualityScore&>("exact", exact), {"fast", fast}}) {
      page += Row({name, Number(score.perplexity),
                   Number(score.perplexity / baseline.perplexity, "%.4f"), Number(score.kl),
                   Number(100 * score.same_top, "%.2f %%")});
    }
    page += Cat("</table>\n<p>", exact.predictions, " predictions. <i>fast</i> is how the ",
                "artifact is served, <i>exact</i> leaves activations in full precision.</p>\n");
  }
  page += "<h2>Size</h2>\n<table>\n";
  page += Row({"", "bits per weight", "bytes", "weights"}, "th");
  page += Row({"quantized layers", Number(bits_per_weight(), "%.3f"),
               std::to_string(quantized_bytes), std::to_string(quantized_weights)});
  page += Row({"with embedding and head", Number(total_bits_per_weight(), "%.3f"),
               std::to_string(total_bytes), std::to_string(total_weights)});
  page += "</table>\n<h2>Error by layer</h2>\n<table>\n";
  page += Row({"layer", "scheme", "relative error", ""}, "th");
  double most = 0;
  for (const ModuleError& m : modules) most = std::max(most, m.relative_error);
  for (const ModuleError& m : modules) {
    const double width = most > 0 ? 12.0 * m.relative_error / most : 0;
    page += Cat("<tr><td>", EscapeHtml(m.module), "</td><td>", EscapeHtml(m.scheme),
                m.outliers > 0 ? Cat(", ", m.outliers, " outliers") : "", "</td><td>",
                Number(m.relative_error, "%.3e"),
                "</td><td><div class=\"bar\" style=\"width:", Number(width, "%.2f"),
                "em\"></div></td></tr>\n");
  }
  page += "</table>\n";
  if (!drift.empty()) {
    page += "<h2>Distance of the residual stream after each block</h2>\n<table>\n";
    page += Row({"block", "relative squared distance"}, "th");
    for (size_t i = 0; i < drift.size(); ++i) {
      page += Row({std::to_string(i), Number(drift[i], "%.3e")});
    }
    page += "</table>\n";
  }
  page += "<h2>Provenance</h2>\n<table>\n";
  page += Row({"source sha256", source_digest});
  if (calibration_tokens > 0) {
    page += Row({"calibration", Cat(calibration_tokens, " tokens, sha256 ", calibration_digest)});
  }
  page += Row({"computed on", Cat(backend, " (", tier, ")")});
  for (const auto& [phase, value] : seconds) page += Row({phase, Number(value, "%.1f s")});
  page += Row({"peak memory", Number(static_cast<double>(peak_memory_bytes) / 1e6, "%.0f MB")});
  page += Cat("</table>\n<h2>Recipe</h2>\n<pre>", EscapeHtml(recipe.ToJson().dump(2)),
              "</pre>\n</body></html>\n");
  return page;
}

void CheckGate(Report& report) {
  std::string failures;
  auto check = [&failures](bool good, const std::string& text) {
    if (!good) failures += (failures.empty() ? "" : "; ") + text;
  };
  for (const auto& [mode, score] :
       {std::pair<std::string, const QualityScore&>("exact", report.exact),
        {"fast", report.fast}}) {
    const double ratio = score.perplexity / report.baseline.perplexity;
    const Gate& gate = report.gate;
    // Written so that a figure that is not a number fails.
    check(gate.max_perplexity_ratio == 0 || ratio <= gate.max_perplexity_ratio,
          Cat("perplexity ratio ", Number(ratio, "%.5f"), " (", mode, ") is above ",
              Number(gate.max_perplexity_ratio, "%.5g")));
    check(gate.max_kl == 0 || score.kl <= gate.max_kl,
          Cat("KL ", Number(score.kl, "%.5f"), " (", mode, ") is above ",
              Number(gate.max_kl, "%.5g")));
    check(gate.min_same_top == 0 || score.same_top >= gate.min_same_top,
          Cat("same top token ", Number(score.same_top, "%.5f"), " (", mode, ") is below ",
              Number(gate.min_same_top, "%.5g")));
  }
  report.gate_passed = failures.empty();
  report.gate_message = failures;
}

}  // namespace nibble
