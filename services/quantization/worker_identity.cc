// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/worker_identity.h"

#include <fstream>
#include <iterator>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace nibble {
namespace {

std::string ReadSmallFile(const std::string& path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

std::string BootId() {
  return std::string(absl::StripAsciiWhitespace(ReadSmallFile("/proc/sys/kernel/random/boot_id")));
}

// Start time in clock ticks since boot, "" if there is no such process or it is a zombie.
// /proc/PID/stat: the command in brackets may hold anything, so fields count from the last ')'.
std::string StartTicks(pid_t pid) {
  const std::string stat = ReadSmallFile(absl::StrCat("/proc/", pid, "/stat"));
  const size_t bracket = stat.rfind(')');
  if (bracket == std::string::npos || bracket + 2 > stat.size()) return "";
  const std::vector<std::string> fields = absl::StrSplit(stat.substr(bracket + 2), ' ');
  constexpr size_t kStateField = 0, kStartField = 19;  // fields 3 and 22 of proc(5)
  if (fields.size() <= kStartField) return "";
  if (fields[kStateField] == "Z" || fields[kStateField] == "X") return "";
  return std::string(fields[kStartField]);
}

}  // namespace

std::string WorkerIdentity(std::string_view name, pid_t pid) {
  return absl::StrCat(std::string(name), "@", BootId(), ":", pid, ":", StartTicks(pid));
}

bool WorkerLives(std::string_view identity) {
  const size_t at = identity.rfind('@');
  if (at == std::string_view::npos) return false;
  const std::vector<std::string> parts = absl::StrSplit(std::string(identity.substr(at + 1)), ':');
  int pid = 0;
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[1], &pid) || pid <= 0) return false;
  return parts[0] == BootId() && !parts[2].empty() && parts[2] == StartTicks(pid);
}

}  // namespace nibble
