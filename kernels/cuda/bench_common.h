// SPDX-License-Identifier: Apache-2.0
// What the benchmarks of the CUDA backend have in common.
#pragma once

#include <algorithm>
#include <cstdio>
#include <functional>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace nibble {

// What one replay reads: far beyond the cache of any GPU, so that no launch finds its input there.
inline constexpr size_t kDistinctBytes = size_t{256} << 20;
inline constexpr int kMaxCopies = 64;
inline constexpr int kWarmups = 20;

// null without a ceiling to compare with.
inline nlohmann::json Ratio(double value, double of) {
  return of > 0 ? nlohmann::json(value / of) : nlohmann::json(nullptr);
}

// A line at once, so that a run that is cut off keeps what it has.
inline void PrintLine(const nlohmann::json& line) {
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

// A flag of the command line, and what takes its value: false if the value cannot be used.
struct Flag {
  const char* name;
  std::function<bool(const std::string&)> take;
};
// Reads `--flag value ...`; the flag and value that cannot be used, or "".
inline std::string ReadFlags(int argc, char** argv, std::initializer_list<Flag> flags) {
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    const auto* flag =
        std::find_if(flags.begin(), flags.end(), [&](const Flag& f) { return f.name == name; });
    if (i + 1 == argc || flag == flags.end() || !flag->take(value)) return name + " " + value;
  }
  return "";
}

inline std::function<bool(const std::string&)> TakeInt(int* to, int least) {
  return [=](const std::string& text) { return absl::SimpleAtoi(text, to) && *to >= least; };
}
// Numbers of tokens: "1,16,64".
inline std::function<bool(const std::string&)> TakeRows(std::vector<int64_t>* to) {
  return [=](const std::string& text) {
    to->clear();
    for (const auto& part : absl::StrSplit(text, ',')) {
      int64_t rows = 0;
      if (!absl::SimpleAtoi(part, &rows) || rows < 1 || rows > 65536) return false;
      to->push_back(rows);
    }
    return true;
  };
}

}  // namespace nibble
