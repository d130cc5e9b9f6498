// SPDX-License-Identifier: Apache-2.0
#include "services/cli/progress_bar.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace nibble {
namespace {

constexpr std::chrono::milliseconds kRedraw{100};
constexpr int kBarWidth = 24;

int TerminalWidth() {
  winsize size = {};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

}  // namespace

ProgressBar::ProgressBar(bool quiet) : quiet_(quiet), terminal_(::isatty(STDERR_FILENO) != 0) {}

ProgressBar::~ProgressBar() { Clear(); }

void ProgressBar::Show(const std::string& phase, double fraction, std::optional<double> eta_seconds,
                       const std::string& note) {
  if (quiet_) return;
  fraction = std::clamp(fraction, 0.0, 1.0);
  const std::string eta =
      eta_seconds.has_value() ? ", " + FormatSeconds(*eta_seconds) + " left" : std::string();
  const auto now = std::chrono::steady_clock::now();
  const bool changed = phase != phase_;
  if (!terminal_) {
    const int tenth = static_cast<int>(fraction * 10);
    if (!changed && tenth == tenth_) return;
    std::fprintf(stderr, "%s: %3.0f %%%s%s%s\n", phase.c_str(), 100 * fraction, eta.c_str(),
                 note.empty() ? "" : ", ", note.c_str());
    phase_ = phase;
    tenth_ = tenth;
    return;
  }
  if (!changed && fraction < 1 && now - shown_ < kRedraw) return;
  phase_ = phase;
  shown_ = now;
  const int filled = static_cast<int>(std::lround(fraction * kBarWidth));
  std::string bar(static_cast<size_t>(filled), '#');
  bar.resize(kBarWidth, '.');
  char head[160];
  std::snprintf(head, sizeof(head), "%-10.32s [%s] %3.0f %%", phase.c_str(), bar.c_str(),
                100 * fraction);
  std::string line = std::string(head) + eta + (note.empty() ? "" : "  " + note);
  line.resize(std::min(line.size(), static_cast<size_t>(TerminalWidth() - 1)));
  std::fprintf(stderr, "\r\033[K%s", line.c_str());
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressBar::Clear() {
  if (!drawn_) return;
  std::fprintf(stderr, "\r\033[K");
  std::fflush(stderr);
  drawn_ = false;
}

std::string FormatBytes(int64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1000 && unit + 1 < std::size(kUnits)) {
    value /= 1000;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

std::string FormatSeconds(double seconds) {
  const auto whole = static_cast<int64_t>(std::max(0.0, seconds) + 0.5);
  char text[48];
  if (whole >= 3600) {
    std::snprintf(text, sizeof(text), "%lldh %02lldm", static_cast<long long>(whole / 3600),
                  static_cast<long long>(whole / 60 % 60));
  } else if (whole >= 60) {
    std::snprintf(text, sizeof(text), "%lldm %02llds", static_cast<long long>(whole / 60),
                  static_cast<long long>(whole % 60));
  } else {
    std::snprintf(text, sizeof(text), "%llds", static_cast<long long>(whole));
  }
  return text;
}

}  // namespace nibble
