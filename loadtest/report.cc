// SPDX-License-Identifier: Apache-2.0
#include "loadtest/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

namespace nibble::load {
namespace {

nlohmann::json Distribution(const std::vector<double>& values) {
  if (values.empty()) return {{"count", 0}};
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  return {{"count", values.size()},
          {"mean", sum / static_cast<double>(values.size())},
          {"p50", Quantile(values, 0.5)},
          {"p90", Quantile(values, 0.9)},
          {"p95", Quantile(values, 0.95)},
          {"p99", Quantile(values, 0.99)},
          {"max", *std::max_element(values.begin(), values.end())}};
}

template <typename... T>
void Append(std::string* out, const char* format, T... values) {
  char line[256];
  std::snprintf(line, sizeof(line), format, values...);
  out->append(line);
}

}  // namespace

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double place = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(std::floor(place));
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (place - std::floor(place)) * (values[above] - values[below]);
}

void Report::Add(const Outcome& outcome) {
  const bool ok = outcome.status == "OK";
  ++outcomes_[ok ? "OK/" + outcome.finish : outcome.status];
  if (!ok) messages_.emplace(outcome.status, outcome.message);
  tokens_ += outcome.tokens;
  if (outcome.first_token >= 0) {
    prompt_tokens_ += outcome.prompt_tokens;
    first_token_.push_back(outcome.first_token);
  }
  gaps_.insert(gaps_.end(), outcome.gaps.begin(), outcome.gaps.end());
  if (ok) end_to_end_.push_back(outcome.end);
}

int64_t Report::succeeded() const { return static_cast<int64_t>(end_to_end_.size()); }

nlohmann::json Report::ToJson(double seconds) const {
  int64_t requests = 0;
  for (const auto& [status, count] : outcomes_) requests += count;
  return {{"seconds", seconds},
          {"requests", requests},
          {"not_sent", not_sent_},
          {"outcomes", outcomes_},
          {"messages", messages_},
          {"requests_per_s", static_cast<double>(succeeded()) / seconds},
          {"prompt_tokens", prompt_tokens_},
          {"generated_tokens", tokens_},
          {"generated_tokens_per_s", static_cast<double>(tokens_) / seconds},
          {"time_to_first_token_seconds", Distribution(first_token_)},
          {"inter_token_seconds", Distribution(gaps_)},
          {"end_to_end_seconds", Distribution(end_to_end_)}};
}

std::string Report::Table(const nlohmann::json& report) {
  std::string out;
  Append(&out, "%lld requests in %.2f s: %.2f/s, %.1f generated tokens/s\n",
         static_cast<long long>(report["requests"].get<int64_t>()), report["seconds"].get<double>(),
         report["requests_per_s"].get<double>(), report["generated_tokens_per_s"].get<double>());
  for (const auto& [status, count] : report["outcomes"].items()) {
    Append(&out, "  %-22s %8lld\n", status.c_str(), static_cast<long long>(count.get<int64_t>()));
  }
  if (report["not_sent"].get<int64_t>() > 0) {
    Append(&out, "  %-22s %8lld\n", "not sent (no room)",
           static_cast<long long>(report["not_sent"].get<int64_t>()));
  }
  for (const auto& [status, message] : report["messages"].items()) {
    Append(&out, "  %s: %.180s\n", status.c_str(), message.get<std::string>().c_str());
  }
  Append(&out, "%-22s %9s %9s %9s %9s %9s %9s\n", "milliseconds", "mean", "p50", "p90", "p95",
         "p99", "max");
  const std::pair<const char*, const char*> rows[] = {
      {"time to first token", "time_to_first_token_seconds"},
      {"between tokens", "inter_token_seconds"},
      {"end to end", "end_to_end_seconds"}};
  for (const auto& [title, field] : rows) {
    const nlohmann::json& d = report[field];
    const auto ms = [&](const char* name) { return 1000 * d.value(name, 0.0); };
    Append(&out, "%-22s %9.2f %9.2f %9.2f %9.2f %9.2f %9.2f\n", title, ms("mean"), ms("p50"),
           ms("p90"), ms("p95"), ms("p99"), ms("max"));
  }
  return out;
}

}  // namespace nibble::load
