// SPDX-License-Identifier: Apache-2.0
#include "services/common/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

namespace nibble {
namespace {

#ifdef __clang__
constexpr std::string_view kCompiler = "clang " __clang_version__;
#else
constexpr std::string_view kCompiler = "gcc " __VERSION__;
#endif
#ifdef NDEBUG
constexpr std::string_view kBuildType = "optimized";
#else
constexpr std::string_view kBuildType = "debug";
#endif

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

int64_t CountEntries(const char* directory) {
  std::error_code error;
  std::filesystem::directory_iterator it(directory, error);
  int64_t count = 0;
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) ++count;
  return count;
}

double ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0;
  int64_t resident = 0;
  statm >> total >> resident;
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

}  // namespace

std::shared_ptr<void> ExportProcessMetrics(Metrics& metrics) {
  metrics.Set(Metric::kBuildInfo, {NIBBLE_VERSION, kCompiler, kBuildType}, 1);
  const auto start = std::chrono::steady_clock::now();
  return metrics.AddCollector([start](MetricSink& sink) {
    const std::chrono::duration<double> uptime = std::chrono::steady_clock::now() - start;
    sink.Emit(Metric::kUptime, {}, uptime.count());
    sink.Emit(Metric::kResidentBytes, {}, ResidentBytes());
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    sink.Emit(Metric::kCpuSeconds, {}, Seconds(usage.ru_utime) + Seconds(usage.ru_stime));
    sink.Emit(Metric::kThreads, {}, static_cast<double>(CountEntries("/proc/self/task")));
    sink.Emit(Metric::kOpenFiles, {}, static_cast<double>(CountEntries("/proc/self/fd")));
  });
}

}  // namespace nibble
