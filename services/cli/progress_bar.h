// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace nibble {

// Progress of something long, on stderr: a bar that is redrawn on a terminal, otherwise a plain
// line whenever the phase changes or another tenth is done.
class ProgressBar {
 public:
  explicit ProgressBar(bool quiet);
  ~ProgressBar();  // Clear()
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // `fraction` 0..1; `eta_seconds` unset while unknown.
  void Show(const std::string& phase, double fraction, std::optional<double> eta_seconds,
            const std::string& note);
  // Removes the bar, so that ordinary lines can be printed.
  void Clear();

 private:
  const bool quiet_;
  const bool terminal_;
  bool drawn_ = false;
  std::string phase_;
  int tenth_ = -1;
  std::chrono::steady_clock::time_point shown_;
};

// "1.5 MB", powers of ten.
std::string FormatBytes(int64_t bytes);
// "1h 02m", "3m 05s", "7s".
std::string FormatSeconds(double seconds);

}  // namespace nibble
