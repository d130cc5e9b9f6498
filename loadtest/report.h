// SPDX-License-Identifier: Apache-2.0
// From outcomes to a table and to JSON.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "loadtest/request.h"

namespace nibble::load {

// The q-quantile of `values`, 0 <= q <= 1, by linear interpolation between neighbours (the usual
// definition: numpy's default). 0 if there are none.
double Quantile(std::vector<double> values, double q);

class Report {
 public:
  void Add(const Outcome& outcome);
  // Open loop: an arrival for which there was no room.
  void NotSent() { ++not_sent_; }

  // `seconds`: from the first request to the last answer.
  nlohmann::json ToJson(double seconds) const;
  static std::string Table(const nlohmann::json& report);

  int64_t succeeded() const;

 private:
  std::map<std::string, int64_t> outcomes_;      // status, "OK/stop" and "OK/length"
  std::map<std::string, std::string> messages_;  // the first of each status that is not OK
  int64_t prompt_tokens_ = 0;
  int64_t tokens_ = 0;
  int64_t not_sent_ = 0;
  std::vector<double> first_token_, gaps_, end_to_end_;  // seconds
};

}  // namespace nibble::load
